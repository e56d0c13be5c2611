#!/usr/bin/env python3
"""measure_convert.py DIJIANG CHECKPOINT [RUNS] [--cold] [--link] [--proof] [--recipe R]... [--builder PYTHON]
[--optimum PYTHON]: time and memory of a conversion without a proof, beside copying the same weight files and, where
asked for, beside other tools that write ONNX from the same checkpoint.

Prints of each way, as medians with the least and the most: the seconds until it has ended, the seconds until its files
are durable (fsync by `sync`, which finds nothing left to do behind `convert`), the largest anonymous memory of the
process and its children (RssAnon of /proc, Linux), and the bytes it left. The ways are taken in turn, in each of RUNS:
`cp`, and `convert --no-verify` for each recipe; with `--link` linked too, and with `--proof` with its proof. The files
are in the page cache; with `--cold` nothing is, programs neither: dirty pages are written out and the cache is dropped
before each (root, /proc/sys/vm/drop_caches). Files are made in the working directory, one way's at a time.

`--builder` names a Python that has onnxruntime-genai, torch and transformers, and `--optimum` one with optimum-onnx.
Both write the model with softmax attention, in f16 unless `--precision fp32`, and are called without a network. Of the
builder's seconds, those of its imports are told apart.
"""
import argparse, glob, os, shutil, statistics, subprocess, sys, tempfile, time

OFFLINE = {'HF_HUB_OFFLINE': '1', 'TRANSFORMERS_OFFLINE': '1'}
BETWEEN_SAMPLES = 0.005


def children(pid):
    """All processes below one, as far as they are still there."""
    for listing in glob.glob(f'/proc/{pid}/task/*/children'):
        try:
            with open(listing) as file:
                below = file.read().split()
        except OSError:
            continue
        for child in below:
            yield child
            yield from children(child)


def anonymous(pid):
    total = 0
    for one in [pid, *children(pid)]:
        try:
            with open(f'/proc/{one}/status') as status:
                total += sum(int(line.split()[1]) for line in status if line.startswith('RssAnon'))
        except OSError:
            pass
    return total * 1024


def files_below(directory):
    return [os.path.join(at, name) for at, _, names in os.walk(directory) for name in names]


def measure(command, target):
    """Seconds, seconds until durable, bytes of anonymous memory, bytes left in `target`."""
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env={**os.environ, **OFFLINE})
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(BETWEEN_SAMPLES)
        seconds = time.perf_counter() - start
        if process.returncode:
            said.seek(0)
            sys.exit(f'{said.read().decode(errors="replace")}\n{command} failed')
    made = files_below(target)
    if made:
        subprocess.run(['sync', *made], check=True)
    return seconds, time.perf_counter() - start, peak, sum(map(os.path.getsize, made))


def drop_caches():
    os.sync()
    with open('/proc/sys/vm/drop_caches', 'w') as switch:
        switch.write('3')


def ways(options, files, target):
    """What each is called, and its command."""
    found = {'cp': ['cp', *files, target]}
    for recipe in options.recipe or ['adaptive']:
        convert = [options.dijiang, 'convert', options.checkpoint, '-o', target, '--no-verify', '--recipe', recipe]
        found[f'convert, {recipe}'] = convert
        if options.link:
            found[f'convert --link, {recipe}'] = [*convert, '--link']
        if options.proof:
            found[f'convert with its proof, {recipe}'] = [part for part in convert if part != '--no-verify']
    if options.builder:
        builder = [options.builder, '-m', 'onnxruntime_genai.models.builder']
        found['builder, imports alone'] = [options.builder, '-c', 'import onnxruntime_genai.models.builder']
        cache = os.path.join(os.path.dirname(target), 'cache')
        found['builder'] = [*builder, '-m', options.checkpoint, '-o', target, '-p', options.precision,
                            '-e', options.provider, '-c', cache]
    if options.optimum:
        optimum = [options.optimum, '-m', 'optimum.commands.optimum_cli', 'export', 'onnx']
        found['optimum'] = [*optimum, '--model', options.checkpoint, '--task', 'text-generation-with-past',
                            '--dtype', options.precision, '--no-post-process', target]
    return found


def row(name, runs):
    seconds, durable, anon, left = zip(*runs)
    spread = lambda of: f'{statistics.median(of):.2f} ({min(of):.2f} to {max(of):.2f})'
    return f'| {name} | {spread(seconds)} | {spread(durable)} | {max(anon) / 1e6:,.0f} | {max(left) / 1e6:,.0f} |'


def main(options):
    files = sorted(glob.glob(os.path.join(options.checkpoint, '*.safetensors')))
    found = {}
    with tempfile.TemporaryDirectory(dir='.') as scratch:
        target = os.path.join(scratch, 'made')
        for _ in range(options.runs):
            for name, command in ways(options, files, target).items():
                if name == 'cp':
                    os.makedirs(target)
                if options.cold:
                    drop_caches()
                found.setdefault(name, []).append(measure(command, target))
                shutil.rmtree(target, ignore_errors=True)
    print(f'{sum(os.path.getsize(f) for f in files) / 1e9:.2f} GB of weights, {options.runs} runs')
    print('| | seconds | and durable | anonymous memory at most, MB | left, MB |\n|---|---|---|---|---|')
    for name, runs in found.items():
        print(row(name, runs))


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('dijiang')
parser.add_argument('checkpoint')
parser.add_argument('runs', nargs='?', type=int, default=7)
parser.add_argument('--cold', action='store_true')
parser.add_argument('--link', action='store_true')
parser.add_argument('--proof', action='store_true')
parser.add_argument('--recipe', action='append')
parser.add_argument('--builder', metavar='PYTHON')
parser.add_argument('--optimum', metavar='PYTHON')
parser.add_argument('--precision', choices=['fp16', 'fp32'], default='fp16')
parser.add_argument('--provider', default='cpu', help='what the builder writes for: cpu or cuda')
main(parser.parse_args())

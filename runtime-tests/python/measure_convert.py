#!/usr/bin/env python3
"""measure_convert.py DIJIANG CHECKPOINT [RUNS] [--cold] [--link]: time and anonymous memory of a conversion without a
proof, beside copying the same weight files, in turn.

Prints the median of each: `cp`, `cp` made durable (fsync, as a conversion does), and `convert --no-verify`, and
the largest anonymous memory (RssAnon of /proc, Linux) of the conversion. The files are in the page cache; with
`--cold` nothing is: dirty pages are written out and the cache is dropped before each (root, /proc/sys/vm/drop_caches).
With `--link`, `convert --no-verify --link` too. Copies and bundles are made in the working directory, one at a time.
"""
import argparse, glob, os, shutil, statistics, subprocess, sys, tempfile, time


def copy(files, target, durable):
    start = time.perf_counter()
    os.makedirs(target)
    subprocess.run(['cp', *files, target], check=True)
    if durable:
        subprocess.run(['sync', *(os.path.join(target, os.path.basename(f)) for f in files)], check=True)
    return time.perf_counter() - start, 0


def convert(command):
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            with open(f'/proc/{process.pid}/status') as status:
                anon = [int(line.split()[1]) for line in status if line.startswith('RssAnon')]
            peak = max([peak, *anon])
        except OSError:
            pass
        time.sleep(0.002)
    if process.returncode:
        sys.exit(f'{command} failed')
    return time.perf_counter() - start, peak / 1024


def drop_caches():
    os.sync()
    with open('/proc/sys/vm/drop_caches', 'w') as switch:
        switch.write('3')


def main(options):
    files = sorted(glob.glob(os.path.join(options.checkpoint, '*.safetensors')))
    with tempfile.TemporaryDirectory(dir='.') as scratch:
        target = os.path.join(scratch, 'made')
        conversion = [options.dijiang, 'convert', options.checkpoint, '-o', target, '--no-verify']
        ways = {
            'cp': lambda: copy(files, target, False),
            'cp, durable': lambda: copy(files, target, True),
            'convert --no-verify': lambda: convert(conversion),
        }
        if options.link:
            ways['convert --no-verify --link'] = lambda: convert([*conversion, '--link'])
        found = {name: [] for name in ways}
        for _ in range(options.runs):
            for name, way in ways.items():
                if options.cold:
                    drop_caches()
                found[name].append(way())
                shutil.rmtree(target)
    print(f'{sum(os.path.getsize(f) for f in files) / 1e9:.2f} GB of weights')
    for name, runs in found.items():
        seconds, anon = [s for s, _ in runs], max(a for _, a in runs)
        memory = f', {anon:.0f} MB anonymous memory at most' if anon else ''
        print(f'{name}: {statistics.median(seconds):.2f} s (min {min(seconds):.2f}, max {max(seconds):.2f}){memory}')


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('dijiang')
parser.add_argument('checkpoint')
parser.add_argument('runs', nargs='?', type=int, default=7)
parser.add_argument('--cold', action='store_true')
parser.add_argument('--link', action='store_true')
main(parser.parse_args())

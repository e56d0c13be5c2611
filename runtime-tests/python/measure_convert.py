#!/usr/bin/env python3
"""measure_convert.py DIJIANG CHECKPOINT [RUNS]: time and anonymous memory of a conversion without a proof,
beside copying the same weight files, in turn.

Prints the median of each: `cp`, `cp` made durable (fsync, as a conversion does), and `convert --no-verify`, and
the largest anonymous memory (RssAnon of /proc, Linux) of the conversion. The files are in the page cache.
"""
import glob, os, shutil, statistics, subprocess, sys, tempfile, time


def copy(files, target, durable):
    start = time.perf_counter()
    subprocess.run(['cp', *files, target], check=True)
    if durable:
        subprocess.run(['sync', *(os.path.join(target, os.path.basename(f)) for f in files)], check=True)
    return time.perf_counter() - start


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


def main(dijiang, checkpoint, runs=7):
    files = glob.glob(os.path.join(checkpoint, '*.safetensors'))
    times = {'cp': [], 'cp, durable': [], 'convert --no-verify': []}
    peak = 0
    with tempfile.TemporaryDirectory(dir='.') as scratch:
        for _ in range(int(runs)):
            for name, durable in (('cp', False), ('cp, durable', True)):
                target = os.path.join(scratch, 'copy')
                os.makedirs(target)
                times[name].append(copy(files, target, durable))
                shutil.rmtree(target)
            bundle = os.path.join(scratch, 'bundle')
            seconds, anon = convert([dijiang, 'convert', checkpoint, '-o', bundle, '--no-verify'])
            times['convert --no-verify'].append(seconds)
            peak = max(peak, anon)
            shutil.rmtree(bundle)
    for name, seconds in times.items():
        print(f'{name}: {statistics.median(seconds):.2f} s (min {min(seconds):.2f}, max {max(seconds):.2f})')
    print(f'convert: {peak:.0f} MB anonymous memory at most')


if len(sys.argv) < 3:
    sys.exit(__doc__)
main(*sys.argv[1:])

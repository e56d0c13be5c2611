#!/usr/bin/env python3
"""measure_encoder.py MODEL BUNDLE [LENGTHS [RUNS]]: a sentence encoder before and after conversion.

MODEL is an ONNX graph with a tokenizer.json beside it, or the folder of both; BUNDLE is what `dijiang convert` made
of it. Prints how near the embeddings (mean over the tokens, of length one) of the two are, and what each takes for
one row of LENGTHS tokens (512,2048,8192), in ONNX Runtime on the CPU with two threads: seconds, and seconds of
processor time, which other work on the machine disturbs less; the least of RUNS runs (3). Beyond the positions that
the model knows they begin again, which needs `position_ids` among the inputs. Needs onnxruntime and tokenizers.
"""
import json, os, sys, time

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

SENTENCES = """
The cat sleeps on the warm window sill.
A kitten is napping beside the window.
Dogs bark when strangers come to the door.
The train to the coast leaves at seven.
Our bus was late because of the snow.
She bought apples and pears at the market.
Fresh fruit is cheaper in the summer.
The doctor told him to rest for a week.
A nurse measured the patient's blood pressure.
He plays the violin in the city orchestra.
The concert hall was full on Friday night.
Rain is expected in the north tomorrow.
The forecast says it will be sunny all weekend.
Water boils at a hundred degrees at sea level.
Ice melts faster when salt is added to it.
The court rejected the appeal on Monday.
A judge decided that the contract was void.
Prices rose by three per cent last year.
The bank lowered its interest rate again.
Investors sold their shares after the report.
The teacher explained fractions with a cake.
Pupils learn to read in the first year of school.
The library closes early on Saturdays.
I borrowed two novels and a book of poems.
The film was longer than the novel it follows.
Critics praised the actress for her last role.
The team won the match in the final minute.
Our goalkeeper saved two penalties yesterday.
He runs ten kilometres every morning.
The mountain path is closed after the landslide.
Climbers reached the summit before noon.
The old bridge was built by the Romans.
Archaeologists found coins under the church.
The ship carried grain across the Atlantic.
Fishermen repaired their nets in the harbour.
Bees collect nectar from the lavender.
The garden needs water in dry months.
Whales communicate over great distances.
Bacteria can become resistant to antibiotics.
The vaccine was tested on thousands of volunteers.
The telescope took a picture of a distant galaxy.
A comet passes the sun every seventy-six years.
The engine stops when the battery is empty.
Electric cars are quieter than older ones.
The program crashed because a file was missing.
Please restart the server after the update.
The password must have at least twelve characters.
Add the flour slowly and stir until smooth.
Bake the bread for forty minutes.
This soup needs a little more salt.
""".strip().splitlines()


def graph_of(path):
    return os.path.join(path, 'model.onnx') if os.path.isdir(path) else path


def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    # A thread that waits for work by asking for it takes processor time too.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    return ort.InferenceSession(path, options, providers=['CPUExecutionProvider'])


def run(model, ids, mask, positions):
    """Features of every token; positions begin again where the model has no more."""
    counted = np.broadcast_to(np.arange(ids.shape[1]) % positions, ids.shape)
    known = {'input_ids': ids, 'attention_mask': mask, 'token_type_ids': np.zeros_like(ids),
             'position_ids': counted}
    given = {i.name: np.ascontiguousarray(known[i.name], dtype=np.int64) for i in model.get_inputs()}
    return model.run(None, given)[0]


def embeddings(model, ids, mask, positions):
    features = run(model, ids, mask, positions) * mask[..., None]
    mean = features.sum(1) / mask.sum(1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def compare(models, folder, positions):
    tokenizer = Tokenizer.from_file(os.path.join(folder, 'tokenizer.json'))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(positions)
    encoded = tokenizer.encode_batch(SENTENCES)
    ids, mask = (np.array([getattr(e, what) for e in encoded]) for what in ('ids', 'attention_mask'))
    before, after = (embeddings(m, ids, mask, positions) for m in models)
    cosines = (before * after).sum(1)
    pairs = np.triu_indices(len(SENTENCES), 1)
    kept = np.corrcoef((before @ before.T)[pairs], (after @ after.T)[pairs])[0, 1]
    print(f'{len(SENTENCES)} sentences, cosine of before and after: mean {cosines.mean():.4f}, '
          f'least {cosines.min():.4f}; correlation of the similarities of all pairs: {kept:.4f}')


def least_times(model, length, positions, runs):
    """Seconds and seconds of processor time."""
    ids = np.random.default_rng(0).integers(1000, 20000, (1, length))
    mask = np.ones_like(ids)
    times = []
    for _ in range(runs):
        start, used = time.perf_counter(), time.process_time()
        run(model, ids, mask, positions)
        times.append((time.perf_counter() - start, time.process_time() - used))
    return [min(column) for column in zip(*times)]


def main(model, bundle, lengths='512,2048,8192', runs='3'):
    source = graph_of(model)
    folder = os.path.dirname(source)
    models = [session(source), session(graph_of(bundle))]
    with open(os.path.join(folder, 'config.json')) as config:
        positions = json.load(config)['max_position_embeddings']
    compare(models, folder, positions)
    takes_positions = any(i.name == 'position_ids' for i in models[0].get_inputs())
    for length in map(int, lengths.split(',')):
        if length > positions and not takes_positions:
            print(f'{length} tokens: left out, the graph has {positions} positions and takes no position_ids')
            continue
        for name, m in zip(('softmax', 'linear'), models):
            wall, used = least_times(m, length, positions, int(runs))
            print(f'{length} tokens, {name}: {wall:.3f} s, {used:.3f} s of processor time', flush=True)


if len(sys.argv) < 3:
    sys.exit(__doc__)
main(*sys.argv[1:])

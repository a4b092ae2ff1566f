"""Chapter 6 as it stands before training, at toy, in a development world."""
import ast, os, sys, time
from pathlib import Path
import numpy as np, torch
sys.path.insert(0, "/tmp/h/fugue")
from minisearch import chapters
from minisearch.profiles import derive_seed
def exec_(page, names):
    for node in ast.parse(Path(page.__file__).read_text()).body:
        t = getattr(node, "target", None) or getattr(node, "targets", [None])[0]
        if getattr(t, "id", "") in names and not isinstance(node, ast.AugAssign):
            exec(compile(ast.Module([node], []), "x", "exec"), vars(page))
def opened(world=100, seed=2000, noise=0.1, **over):
    page = chapters.load("06_csmcir")
    page.profile, page.seed, page.world_seed, page.init_seed = "toy", seed, world, 0
    page.data, page.category, page.protocol, page.noise, page.steps = "", "dress", "original", noise, 0
    page.settings = page.CirSettings.of("toy", **over)
    page.record = None
    page.use_threads(1); page.quiet()
    exec_(page, ("PLANS", "RATES"))
    t = time.time()
    page.sets, page.shown = page.open_sets(world, "")
    page.every_name = list(dict.fromkeys(n for f in page.sets.values() for n in f.gallery))
    page.captions = {l: page.captions_of(page.every_name, l) for l in page.LEVELS}
    eye, page.patch_width = page.frozen_eye(); page.eye = eye
    op = {n: f.open for f in page.sets.values() for n in f.gallery}
    page.pixels = np.stack([page.fitted(op[n](n), page.settings.size)[0] for n in page.every_name])
    page.patches = page.in_parts(lambda x: eye(x).half(), torch.from_numpy(page.pixels))
    tr = page.sets["train"]
    texts = [x.text for x in tr.triplets] + [page.captions[l][n] for l in page.LEVELS for n in tr.gallery]
    page.vocabulary_size, page.encode = page.text_reader(texts)
    ids = {l: page.encode([page.captions[l][n] for n in page.every_name]) for l in page.LEVELS}
    page.album = page.Album({n: i for i, n in enumerate(page.every_name)}, page.patches, ids)
    sh = np.random.default_rng(derive_seed(world, "wrong")).permutation(len(page.every_name))
    page.album.captions["wrong"] = ids["chain"][torch.from_numpy(sh)]
    page.sets_of_rows = {n: page.queries_of(f, page.album.row, page.encode) for n, f in page.sets.items()}
    print("opened", round(time.time() - t, 1), "s wall,", round(time.process_time(), 1), "cpu", flush=True)
    return page

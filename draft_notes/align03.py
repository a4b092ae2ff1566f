"""python align03.py: alignment on feedback, development world 100."""
import sys, time, json
sys.path.insert(0,'/work/wt03/data_scripts')
import torch, numpy as np
from dataclasses import replace
from minisearch import chapters
from minisearch.beam import Trie
from minisearch.models.generative import Alphabet
from minisearch.profiles import quiet, use_threads
from minisearch.recorder import Recorder
from minisearch.records import Ragged
from pathlib import Path
quiet()
c = chapters.load("03_onesearch_v2")
s = c.SearchSettings.of("toy"); use_threads(1)
W=int(sys.argv[1]); 
vars(c).update(profile="toy", world_seed=W, init_seed=0, seed=500, data="", noise=-1.0, fresh=False, steps=0, rate=0.0, rl_rate=0.0, settings=s, RANKED={}, MODELS={}, HISTORIES={})
t=time.process_time()
c.shop=c.simulated_shop(W)
c.behaviour=c.behaviour_of([c.shop.direct_log,c.shop.complex_log], len(c.shop.texts))
c.space=c.make_space(c.shop); c.codes=c.make_codes()
c.alphabet=Alphabet(len(c.space.vocabulary),("retrieve","think"),c.codes.sizes)
c.identifiers=c.alphabet.tokens(c.codes.codes); c.trie=Trie(c.identifiers)
c.owners=Ragged.from_pairs(c.trie.find(c.identifiers), np.arange(len(c.identifiers)), len(c.trie))
c.record=Recorder(Path(f'/tmp/h/rec03_{W}'))
c.complex_set,c.direct_set=c.complex_requests(),c.direct_requests()
print('set up', round(time.process_time()-t), flush=True)
KEEP=("hr@10","mrr@10","order_hr@10","valid","clicks","orders","relevance","direct_hr@10","reward","reward_ctr","keywords_hr@10","blank_hr@10","long_tail","categories")
def run(name, label="", **kw):
    c.settings=replace(s, **kw)
    t=time.process_time(); c.run_arm(name)
    m={k:round(c.record.metrics[f'{name}/{k}'],4) for k in KEEP if f'{name}/{k}' in c.record.metrics}
    print(name, kw, label, 'cpu', round(time.process_time()-t,1), json.dumps(m), flush=True)

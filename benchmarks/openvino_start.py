"""From nothing to the first token with OpenVINO GenAI: python openvino_start.py IR_FOLDER THREADS PROMPT. For start.py; needs openvino-genai alone.

The SDPA pipeline without a folder for compiled models: what starts fastest of its two pipelines with and without one.
"""

import sys

import openvino_genai

folder, threads, prompt = sys.argv[1:]
pipe = openvino_genai.LLMPipeline(folder, "CPU", INFERENCE_NUM_THREADS=int(threads), ATTENTION_BACKEND="SDPA")


def show(text: str) -> bool:
    print(text, end="", flush=True)
    return False


pipe.generate(prompt, max_new_tokens=4, apply_chat_template=False, streamer=show)

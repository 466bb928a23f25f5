"""How the files of a checkpoint are called."""

CONFIG = "config.json"
GENERATION = "generation_config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SENTENCES = "modules.json"  # of sentence-transformers
QUANTISED = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"
ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER, ADAPTER_PICKLE)
ADAPTER_FOLDER = "adapter"  # of a checkpoint, whose adapter lies in it

TEMPLATES = ("chat_template.jinja", "chat_template.json")
TEMPLATE_FOLDER = "additional_chat_templates"
VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model")
TOKENIZER = (
    *VOCABULARIES,
    "merges.txt",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)

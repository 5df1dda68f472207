#!/usr/bin/env bash
# transformers 5.24.0: Trainer with gradient_accumulation_steps=4 trains a RoBERTa by gradients 4 times too large
#
# Versions: transformers 5.24.0, accelerate 1.15.0, torch 2.13.0, tokenizers 0.23.3, numpy 2.3.5. On a CPU.
#
# Guess: 8 rows at once, 2 rows in 4 steps of accumulation, and 1 row in 8 steps are the same update, where each row has
# as many masked tokens: the Trainer divides by the number of steps, or of masked tokens in all of them.
#
# Behaviour: with RobertaForMaskedLM neither is done. The gradients, and the loss that is logged, are those of a step
# times the number of steps: a fresh model logs 4 times log(vocabulary). There is no error. Clipping at 1.0, which is
# the Trainer's default, then sets in at a quarter of the norm that it is meant for. By hand, with 5.23.0, the same was
# seen of BERT, ELECTRA, DistilBERT, DeBERTa v2 and XLM-RoBERTa. ModernBertForMaskedLM is right, and so is RoBERTa with
# label_smoothing_factor, for which the Trainer computes the loss.
#
# Source: Trainer.training_step() in transformers/trainer.py divides only if the model does not take num_items_in_batch,
# and takes a forward() that has **kwargs for one that does. RobertaForMaskedLM.forward() in
# transformers/models/roberta/modeling_roberta.py has **kwargs and hands them to the encoder; its loss is a plain
# CrossEntropyLoss(), a mean over one step. Issue 47688 of huggingface/transformers, open when this was written.
#
# Output seen (a vocabulary of 50, log(50) = 3.91; rows x steps: norm of the gradients, loss in the log):
#   RobertaForMaskedLM: 8 x 1: 1.42, 3.91; 2 x 4: 5.68, 15.64; 1 x 8: 11.36, 31.28
#   ModernBertForMaskedLM: 8 x 1: 1.69, 3.91; 2 x 4: 1.69, 3.91; 1 x 8: 1.69, 3.91
#   RobertaForMaskedLM, label_smoothing_factor=0.1: 8 x 1: 1.28, 3.91; 2 x 4: 1.28, 3.91; 1 x 8: 1.28, 3.91
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check \
    transformers==5.24.0 accelerate==1.15.0 torch==2.13.0 tokenizers==0.23.3 numpy==2.3.5

cat > "$folder/check.py" <<'PYTHON'
import sys
from math import isclose

import torch
from transformers import (
    ModernBertConfig,
    ModernBertForMaskedLM,
    PrinterCallback,
    RobertaConfig,
    RobertaForMaskedLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    logging,
)

logging.set_verbosity_error()
torch.set_num_threads(1)
ROWS, LENGTH, VOCABULARY, MASK = 8, 8, 50, 4
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 20,
}
ROBERTA = RobertaConfig(**SIZES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
MODERN = ModernBertConfig(
    **SIZES, pad_token_id=1, bos_token_id=0, cls_token_id=0, eos_token_id=2, sep_token_id=2, attn_implementation="sdpa"
)


def rows():
    """Rows of random tokens, of which two are masked in each."""
    generator = torch.Generator().manual_seed(0)
    for row in range(ROWS):
        ids = torch.randint(5, VOCABULARY, (LENGTH,), generator=generator)
        masked = torch.zeros(LENGTH, dtype=torch.bool)
        masked[[row % LENGTH, (row + 3) % LENGTH]] = True
        yield {"input_ids": ids.masked_fill(masked, MASK), "labels": ids.masked_fill(~masked, -100)}


class Norm(TrainerCallback):
    """Keeps the norm of the gradients of an update."""

    def on_pre_optimizer_step(self, args, state, control, model, **others):
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        self.norm = float(torch.linalg.vector_norm(torch.cat([gradient.flatten() for gradient in gradients])))


def update(model_class, config, batch, smoothing):
    """The norm of an update's gradients without clipping, and the loss in the log."""
    torch.manual_seed(0)
    arguments = TrainingArguments(
        sys.argv[1],
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=ROWS // batch,
        max_steps=1,
        max_grad_norm=0.0,
        label_smoothing_factor=smoothing,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    norm = Norm()
    trainer = Trainer(model_class(config), arguments, train_dataset=list(rows()), callbacks=[norm])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return norm.norm, trainer.state.log_history[0]["loss"]


def growth(name, model_class, config, smoothing=0.0):
    """How many times larger gradients and loss are with 4 and 8 steps than with one."""
    found = {batch: update(model_class, config, batch, smoothing) for batch in (8, 2, 1)}
    print(f"{name}:", "; ".join(f"{n} x {ROWS // n}: {norm:.2f}, {loss:.2f}" for n, (norm, loss) in found.items()))
    return [found[batch][i] / found[8][i] for batch in (2, 1) for i in (0, 1)]


roberta = growth("RobertaForMaskedLM", RobertaForMaskedLM, ROBERTA)
modern = growth("ModernBertForMaskedLM", ModernBertForMaskedLM, MODERN)
smoothed = growth("RobertaForMaskedLM, label_smoothing_factor=0.1", RobertaForMaskedLM, ROBERTA, 0.1)
found = [*roberta, *modern, *smoothed]
sys.exit(not all(isclose(*pair, rel_tol=1e-3) for pair in zip(found, [4, 4, 8, 8] + 8 * [1])))
PYTHON
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore "$folder/check.py" "$folder/run"

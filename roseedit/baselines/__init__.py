"""What RoseLoRA is compared with: fine-tuning of one matrix, LoRA, AdaLoRA, and the fact put before the prompt.

Each is a small file behind the protocol of `roseedit.methods`. `config` holds their settings, `rows` what they are
trained on, `changes` what is trained, many edits side by side, and `trainer` the steps.
"""

"""DINO pretraining of RATS with Accelerate: `accelerate launch training/pretrain.py [RECIPE] [--setting value]`."""

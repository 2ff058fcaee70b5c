"""What a GPU is expected to do with the kernels, without one: ``python -m hrm_kernels.tuning.model``."""

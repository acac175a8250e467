"""The training settings of published models, for `train_mcvd.py --preset NAME`.

MCVD's source: the scripts `example_scripts/final/*.sh` of the original code, which is what the checkpoints were trained with
(its bare YAML files are not); `ORIGINAL_NAMES` gives the script's name for each. The paper's table of results names
the same models by data set, conditioning and frames. Those of RaMViD, FDM, VDM, LGC-VD and RVD are of their papers and
code; there, a batch is that of one process. How what was trained is sampled is no part of them: the originals take
`--sampling_scheduler DDPMScheduler` with 100 steps (RVD: all of its 1600).
"""

import copy


# Common to all of MCVD's: Adam without weight decay, epsilon prediction, linear betas, the summed loss with its gradient norm
# clipped at 1, a constant learning rate after a linear warm-up, and an average of the weights with constant decay.
_COMMON = {
    "layers_per_block": 2,
    "prediction_type": "epsilon",
    "beta_schedule": "linear",
    "loss_reduction": "sum",
    "max_grad_norm": 1.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "adam_weight_decay": 0.0,
    "lr_scheduler": "constant_with_warmup",
    "ema_decay": 0.999,
    "ema_warmup": False,
    "seed": 1234,
}

# Data set: (channels, size, multiples of the first level's width, levels with attention)
_DATA = {
    "smmnist": (1, 64, (1, 2, 3, 4), (1, 2, 3)),
    "kth": (1, 64, (1, 2, 3, 4), (1, 2, 3)),
    "bair": (3, 64, (1, 2, 3, 4), (1, 2, 3)),
    "cityscapes": (3, 128, (1, 1, 2, 3, 4), (2, 3, 4)),
    "ucf101": (3, 64, (1, 2, 3, 4), (1, 2, 3)),
}

# Name: past/block/future frames, width, head width, SPATIN channels (0: concat), dropout, batch, learning rate,
# warm-up, probability of an absent past and future, steps of the checkpoint that the paper used, original's name.
# fmt: off
_ROWS = {
    #                                         p   k  f  width head spatin drop batch   rate warmup past future    steps
    "smmnist-concat-p5k5":                   ( 5,  5, 0,   64,  64,    0, 0.1,  64, 2e-4,  1000, 0.0, 0.0,   700_000, "smmnist_big_5c5_unetm_b2"),
    "smmnist-spatin-p5k5":                   ( 5,  5, 0,   64,  64,  128, 0.1,  64, 2e-4,  1000, 0.0, 0.0,   140_000, "SMMNIST_big_c5t5_SPADE"),
    "smmnist-spatin-p5k5f5-interpolation":   ( 5,  5, 5,   64,  64,  128, 0.1,  64, 2e-4,  1000, 0.0, 0.0,   150_000, "smmnist_interp_big_c5t5f5_SPADE"),
    "smmnist-spatin-p5k10f5-interpolation":  ( 5, 10, 5,   64,  64,  128, 0.1,  64, 2e-4,  1000, 0.0, 0.0,   125_000, "smmnist_interp_big_c5t10f5_SPADE"),
    "smmnist-spatin-p5k5f5-futuremask":      ( 5,  5, 5,   64,  64,  128, 0.1,  64, 2e-4,  1000, 0.0, 0.5,   125_000, "smmnist_PredPlusInterp_big_c5t5f5_SPADE"),
    "smmnist-spatin-p5k5f5-general":         ( 5,  5, 5,   64,  64,  128, 0.1,  64, 2e-4,  1000, 0.5, 0.5,   375_000, "smmnist_PredPlusInterp_PlusGen_big_c5t5f5_SPADE"),
    "smmnist-concat-p5k5f5-general":         ( 5,  5, 5,   64,  64,    0, 0.1,  64, 2e-4,  1000, 0.5, 0.5,   650_000, "smmnist_64_5c5f5_futurepast"),
    "kth-concat-p10k5":                      (10,  5, 0,   96,  96,    0, 0.1,  64, 2e-4,  5000, 0.0, 0.0,   400_000, "kth64_big_5c10_unetm_b2"),
    "kth-spatin-p10k5":                      (10,  5, 0,  192,  96,  192, 0.1,  64, 2e-4,  5000, 0.0, 0.0,   480_000, "kth64_verybigbig_5c10_spade"),
    "kth-spatin-p10k10f5-futuremask":        (10, 10, 5,   96,  96,  128, 0.1,  64, 2e-4,  5000, 0.0, 0.5,   125_000, "kth64_interp_big_c10t10f5_SPADE"),
    "kth-spatin-p5k5f5-futuremask":          ( 5,  5, 5,   96,  96,  128, 0.1,  64, 2e-4,  5000, 0.0, 0.5,   375_000, "kth64_interp_big_c5t5f5_SPADE"),
    "kth-concat-p5k5f5-general":             ( 5,  5, 5,   96,  96,    0, 0.1,  64, 2e-4,  5000, 0.5, 0.5,   300_000, "kth64_big_5c5f5_futmask50_general"),
    "bair-concat-p1k5":                      ( 1,  5, 0,  192, 192,    0, 0.1,  64, 1e-4,  5000, 0.0, 0.0,   750_000, "bair64_big192_5c1_unetm"),
    "bair-concat-p1k5-pastmask":             ( 1,  5, 0,  192, 192,    0, 0.1,  64, 1e-4,  5000, 0.5, 0.0,   650_000, "bair64_big192_5c1_pmask50_unetm"),
    "bair-concat-p2k5":                      ( 2,  5, 0,  192, 192,    0, 0.1,  64, 1e-4,  5000, 0.0, 0.0,   450_000, "bair64_big192_5c2_unetm"),
    "bair-concat-p2k5-pastmask":             ( 2,  5, 0,  192, 192,    0, 0.1,  64, 1e-4,  5000, 0.5, 0.0,   650_000, "bair64_big192_5c2_pmask50_unetm"),
    "bair-spatin-p1k5":                      ( 1,  5, 0,  192, 192,  128, 0.1,  64, 1e-4,  5000, 0.0, 0.0,   210_000, "bair64_big192_5c1_unetm_spade"),
    "bair-spatin-p1k5-pastmask":             ( 1,  5, 0,  192, 192,  128, 0.1,  64, 1e-4,  5000, 0.5, 0.0,   170_000, "bair64_big192_5c1_pmask50_unetm_spade"),
    "bair-spatin-p2k5":                      ( 2,  5, 0,  192, 192,  128, 0.1,  64, 1e-4,  5000, 0.0, 0.0,   390_000, "bair64_big192_5c2_unetm_spade"),
    "bair-spatin-p2k5-pastmask":             ( 2,  5, 0,  192, 192,  128, 0.1,  64, 1e-4,  5000, 0.5, 0.0,   270_000, "bair64_big192_5c2_pmask50_unetm_spade"),
    # The original trains this one with 1 future frame and samples with 2; the config of a checkpoint decides.
    "bair-concat-p1k5f2-general":            ( 1,  5, 2,  192, 192,    0, 0.1,  64, 1e-4,  5000, 0.5, 0.5,   530_000, "bair64_big192_5c1_prevfutpmask50_general"),
    "bair-concat-p2k5f2-general":            ( 2,  5, 2,  192, 192,    0, 0.1,  64, 1e-4,  5000, 0.5, 0.5,   490_000, "bair64_big192_5c2_prevfutpmask50_general"),
    "cityscapes-concat-p2k5":                ( 2,  5, 0,  192, 192,    0, 0.0,  32, 1e-4,  5000, 0.0, 0.0,   900_000, "city32_big192_5c2_unetm_long"),
    "cityscapes-spatin-p2k5":                ( 2,  5, 0,  256, 256,  128, 0.0,  16, 1e-4,  5000, 0.0, 0.0,   650_000, "city16_big128_256_5c2_unetm_long_spade"),
    # Not used in the paper, so no step is known.
    "cityscapes-spatin-p2k5f2-general":      ( 2,  5, 2,  256, 256,  128, 0.0,  16, 1e-4,  5000, 0.5, 0.5,      None, "city16_big128_256_5c2f2_unetm_long_spade"),
    "ucf101-concat-p4k4":                    ( 4,  4, 0,  288, 288,    0, 0.1,  32, 1e-4,  5000, 0.0, 0.0, 1_050_000, "ucf10132_big288_4c4_unetm"),
    "ucf101-concat-p4k4-pastmask":           ( 4,  4, 0,  288, 288,    0, 0.1,  32, 1e-4,  5000, 0.5, 0.0,   900_000, "ucf10132_big288_4c4_pmask50_unetm"),
    "ucf101-spatin-p4k4":                    ( 4,  4, 0,  288, 288,  192, 0.1,  32, 1e-4,  5000, 0.0, 0.0,   550_000, "ucf10132_big192_288_4c4_unetm_spade"),
    "ucf101-spatin-p4k4-pastmask":           ( 4,  4, 0,  288, 288,  192, 0.1,  32, 1e-4,  5000, 0.5, 0.0,   650_000, "ucf10132_big192_288_4c4_pmask50_unetm_spade"),
    # Not used in the paper, so no step is known.
    "ucf101-spatin-p4k4f4-general":          ( 4,  4, 4,  288, 288,  192, 0.1,  32, 1e-4,  5000, 0.5, 0.5,      None, "ucf10132_big192_288_4c4f4_pmask50_unetm_spade"),
}
# fmt: on

# Common to RaMViD and FDM, whose networks are those of improved-diffusion: no weight decay, epsilon prediction, linear betas,
# a constant learning rate without warm-up.
_ADM = {
    "prediction_type": "epsilon",
    "beta_schedule": "linear",
    "adam_weight_decay": 0.0,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
    "ema_decay": 0.9999,
    "ema_warmup": False,
    "in_channels": 3,
    "num_attention_heads": 4,
}
_ADM_64 = {"resolution": [64], "block_out_channels": [128, 256, 384, 512], "attention_levels": [2, 3]}
_RAMVID = {"method": "ramvid", **_ADM, **_ADM_64, "learning_rate": 2e-5, "max_grad_norm": 1.0, "max_observed": 4}
_FDM = {
    "method": "fdm",
    **_ADM,
    "max_frames": 20,
    "temporal_position": "relative_network",
    "loss_reduction": "window_mean",
    "fill_with_other_clips": True,
    "learning_rate": 1e-4,
    "max_grad_norm": 1e9,  # it does not clip
    "train_batch_size": 2,  # CARLA's, on each of 4 GPUs; that of the others is not known
}
_LGCVD = {
    "method": "lgcvd",
    "prediction_type": "v_prediction",
    "beta_schedule": "squaredcos_cap_v2",
    "loss_type": "l1",
    "in_channels": 3,
    "max_frames": 8,
    "block_out_channels": [128, 256, 384, 512],
    "layers_per_block": 2,
    "attention_levels": [2],
    "attention_head_dim": 128,
    "task_shares": [0.45, 0.4, 0.05, 0.1],
    "learning_rate": 1e-4,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
    "max_grad_norm": 1e9,  # it does not clip
    "train_batch_size": 1,
    "max_train_steps": 300_000,
    "ema_decay": 0.9995,
}
_RVD = {
    "method": "rvd",
    "prediction_type": "epsilon",
    "beta_schedule": "squaredcos_cap_v2",
    "num_train_timesteps": 1600,
    "loss_type": "l1",
    "clip_frames": 8,
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "learning_rate": 5e-5,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
    "max_grad_norm": 1e9,
    "train_batch_size": 1,
    "max_train_steps": 1_000_000,
    "ema_decay": 0.998,
}
_RVD_64 = {"resolution": [64], "block_out_channels": [48, 96, 192, 384], "predictor_channels": [48, 96, 96, 192]}
_RVD_128 = {
    "resolution": [128],
    "block_out_channels": [64, 64, 128, 128, 256, 256],
    "predictor_channels": [64, 128, 192, 256],
}
_OTHERS = {
    # On each of 8 GPUs.
    "ramvid-bair": _RAMVID
    | {
        "layers_per_block": 2,
        "max_frames": 20,
        "drop_observed": 0.25,
        "train_batch_size": 4,
        "max_train_steps": 250_000,
    },
    "ramvid-k600": _RAMVID
    | {
        "layers_per_block": 3,
        "max_frames": 16,
        "drop_observed": 0.25,
        "train_batch_size": 8,
        "max_train_steps": 500_000,
    },
    "ramvid-ucf101": _RAMVID | {"layers_per_block": 3, "max_frames": 16, "drop_observed": 0.75, "train_batch_size": 8},
    "fdm-gqn-mazes": _FDM | _ADM_64 | {"layers_per_block": 2, "clip_frames": 300},
    "fdm-minerl": _FDM | _ADM_64 | {"layers_per_block": 2, "clip_frames": 500},
    "fdm-carla": _FDM
    | {
        "resolution": [128],
        "block_out_channels": [128, 128, 256, 384, 512],
        "attention_levels": [3, 4],
        "layers_per_block": 1,
        "clip_frames": 1000,
    },
    # There is no code of the paper's own. Network, noise (1000 steps, cosine), target, loss, learning rate and batch are
    # those of the public port video-diffusion-pytorch, at its width of 64; windows of 16 frames of 64 x 64 pixels, and images
    # beside them, of which the port has none, are the paper's.
    "vdm-64": {
        "method": "vdm",
        "prediction_type": "epsilon",
        "beta_schedule": "squaredcos_cap_v2",
        "loss_type": "l1",
        "in_channels": 3,
        "resolution": [64],
        "max_frames": 16,
        "block_out_channels": [64, 128, 256, 512],
        "layers_per_block": 1,
        "num_attention_heads": 8,
        "attention_head_dim": 32,
        "temporal_position": "bias_and_rotary",
        "num_joint_images": 4,
        "train_batch_size": 32,
        "learning_rate": 1e-4,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "adam_weight_decay": 0.0,
    },
    # Of LGC-VD's code, on each GPU; its average takes a step of 0.995 every ten updates.
    "lgcvd-bair": _LGCVD | {"resolution": [64]},
    "lgcvd-cityscapes": _LGCVD | {"resolution": [128]},
    # Of RVD's specification, on each GPU; its average takes a step of 0.99 every five updates. Frames of 64 pixels have the
    # same network with one channel (KTH) and with three.
    "rvd-bair": _RVD | _RVD_64 | {"in_channels": 3},
    "rvd-kth": _RVD | _RVD_64 | {"in_channels": 1},
    "rvd-cityscapes": _RVD | _RVD_128 | {"in_channels": 3},
    "rvd-simulation": _RVD | _RVD_128 | {"in_channels": 1},
}

ORIGINAL_NAMES = {name: row[-1] for name, row in _ROWS.items()}
"""MCVD's: our name -> that of the original's script."""

PRESETS = (*_ROWS, *_OTHERS)


def preset(name: str) -> dict:
    """
    The settings of a published model, under the names of `train_mcvd.py`'s flags.

    Args:
        name (`str`): For instance `"smmnist-concat-p5k5f5-general"`; `PRESETS` lists all.

    Returns:
        `dict`: Settings that differ from the script's defaults, and those that define the model.

    Raises:
        ValueError: If there is no such preset.
    """
    if name in _OTHERS:
        return copy.deepcopy(_OTHERS[name])
    if name not in _ROWS:
        raise ValueError(f"There is no preset {name!r}. There are: {', '.join(PRESETS)}.")
    past, block, future, width, head, spatin, dropout, batch, rate, warmup, drop_past, drop_future, steps, _ = _ROWS[name]  # fmt: skip
    channels, size, multiples, attention = _DATA[name.split("-")[0]]
    digits = {"digits": "mnist", "num_digits": 2, "digit_size": 32, "max_speed": 4}
    settings = {
        **_COMMON,
        # The original mirrors half of the clips, but for moving digits.
        **(digits if name.startswith("smmnist") else {"random_flip": True}),
        "in_channels": channels,
        "resolution": [size],
        "num_past_frames": past,
        "num_frames": block,
        "num_future_frames": future,
        "conditioning": "spatin" if spatin else "concat",
        "block_out_channels": [width * multiple for multiple in multiples],
        "down_block_types": [
            "AttnDownBlock2D" if level in attention else "DownBlock2D" for level in range(len(multiples))
        ],
        "attention_head_dim": head,
        "dropout": dropout,
        "train_batch_size": batch,
        "learning_rate": rate,
        "lr_warmup_steps": warmup,
        "drop_past": drop_past,
        "drop_future": drop_future,
    }
    if spatin:
        settings["spatin_channels"] = spatin
    if steps is not None:
        settings["max_train_steps"] = steps
    return settings

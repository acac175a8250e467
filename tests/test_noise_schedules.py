"""Noise schedules of our own."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from mcvd_diffusers.noise_schedules import cosine_logsnr, cosine_logsnr_betas


def test_vdm_7_the_log_ratio_of_signal_to_noise_falls_from_20_to_minus_20():
    values = [cosine_logsnr(step / 500) for step in range(501)]
    assert values[0] == pytest.approx(20, abs=1e-6) and values[-1] == pytest.approx(-20, abs=1e-6)
    assert all(later < earlier for earlier, later in zip(values, values[1:]))
    assert cosine_logsnr(0.5) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="`time` must be in"):
        cosine_logsnr(1.1)


@pytest.mark.parametrize("scheduler_class", [DDPMScheduler, DDIMScheduler])
def test_vdm_7_a_thousand_timesteps_are_points_of_continuous_time(scheduler_class):
    scheduler = scheduler_class(trained_betas=cosine_logsnr_betas(1000), prediction_type="v_prediction")
    signal = scheduler.alphas_cumprod.double()
    ours = torch.log(signal / (1 - signal))
    expected = torch.tensor([cosine_logsnr((step + 1) / 1000) for step in range(1000)], dtype=torch.float64)
    # Within the precision of float32, in which the schedulers compute: near the clean end 1 - signal has few digits.
    torch.testing.assert_close(signal, torch.sigmoid(expected), atol=1e-5, rtol=1e-4)
    middle = slice(50, 990)
    torch.testing.assert_close(ours[middle], expected[middle], atol=5e-3, rtol=0)

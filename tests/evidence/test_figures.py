"""What every panel of a figure has, however little its values differ."""

import matplotlib.pyplot as plt
import pytest

from fogzo.evidence.figures.curves import plain_ticks


@pytest.mark.parametrize("ends", [(0.81, 1.38), (0.52, 0.68), (2.91, 2.93), (0.1, 5), (0.003, 700), (1.1, 1.9)])
def test_a_short_logarithmic_axis_has_labelled_ticks_too(ends):
    figure, panel = plt.subplots()
    panel.set_yscale("log")
    panel.set_ylim(*ends)
    plain_ticks(panel.yaxis)
    figure.draw_without_rendering()
    shown = [tick.label1.get_text() for tick in panel.yaxis.get_major_ticks() if ends[0] <= tick.get_loc() <= ends[1]]
    plt.close(figure)
    assert 2 <= len(set(shown)) == len(shown)
    assert all(float(text) > 0 for text in shown)

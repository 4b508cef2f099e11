"""Quantizers: what turns a latent tensor into codes, and the surrogate that its gradient goes through."""

from fogzo.quantizers.base import Quantizer
from fogzo.quantizers.fixed import FixedScale
from fogzo.quantizers.inputs import fit_activations
from fogzo.quantizers.lsq import LSQ
from fogzo.quantizers.quest import QuEST
from fogzo.quantizers.sign import Sign

__all__ = ["LSQ", "FixedScale", "QuEST", "Quantizer", "Sign", "fit_activations"]

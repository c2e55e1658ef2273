"""Log-Bessel functions of real order: right to the last digits, differentiable in order and argument."""

from probinf.special._iv_ratio import iv_ratio as iv_ratio
from probinf.special._log_0f1 import log_0f1 as log_0f1
from probinf.special._log_i import log_iv as log_iv
from probinf.special._log_i import log_ive as log_ive
from probinf.special._log_k import kv_ratio as kv_ratio
from probinf.special._log_k import log_kv as log_kv
from probinf.special._log_k import log_kve as log_kve

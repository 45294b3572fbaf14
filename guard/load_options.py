"""What can be chosen when a model is loaded, by the names that commands take.

Apart from `loading.py` because a command line reads these before it can afford to import torch.
"""

from typing import Literal

# auto: float32 on a CPU, the checkpoint's own type elsewhere
Precision = Literal["auto", "float32", "bfloat16"]
# weights that are written again keep the checkpoint's own type everywhere, unless asked otherwise
WrittenPrecision = Literal["checkpoint", "float32", "bfloat16"]
# how a model's layers are spread over several devices
DeviceMap = Literal["auto", "balanced", "sequential"]

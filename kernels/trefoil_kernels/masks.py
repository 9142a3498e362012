"""Which keys a query may see, as a value handed to the attention kernels."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Mask:
    """Causal or not, and for a sliding window how many keys back a query sees, itself included.

    A window of W lets the query at position i see the keys j with i - W < j (Mistral, arXiv 2310.06825, section 2).
    """

    is_causal: bool = True
    window: int | None = None

    CAUSAL: ClassVar["Mask"]
    FULL: ClassVar["Mask"]

    def seen(self, queries_Q: Tensor, keys_K: Tensor) -> Tensor:
        """Bool [Q, K]: may the query at this position see the key at that one?"""
        ahead_QK = keys_K[None, :] - queries_Q[:, None]
        seen_QK = ahead_QK <= 0 if self.is_causal else ahead_QK == ahead_QK
        return seen_QK if self.window is None else seen_QK & (ahead_QK > -self.window)

    def hides_nothing_within(self, length: int) -> bool:
        """Is the window wider than a sequence of this length?"""
        return self.window is None or self.window >= length


Mask.CAUSAL = Mask(is_causal=True)
Mask.FULL = Mask(is_causal=False)

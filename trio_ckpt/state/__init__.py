"""What a loop needs to go on: plain values, and lists that grow while they are worked on."""

from ._frontier import Frontier as Frontier
from ._plain import PlainCodec as PlainCodec

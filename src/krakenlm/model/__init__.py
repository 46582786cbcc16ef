"""The model: modules over a leading sub-layer axis, the wirings, the Reducer seam.

Shapes, used in names throughout (``x_SBTD``):

=  ==========================================================================
S  residual streams: one a sub-layer in Kraken, one in all in the others
M  channels that one sum carries, of D
K  branches held here: Kraken's sub-layers or tensor-parallel shards
B  batch
T  tokens
D  hidden size
H  query heads over all local branches
G  key and value heads over all local branches
E  head width
F  feed-forward width of one branch
O  outputs of a linear map; I its inputs
=  ==========================================================================
"""

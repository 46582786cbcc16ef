"""Serving krakenlm's models with vLLM.

``plugin`` tells vLLM of the model, ``vllm_model`` is the model as vLLM runs it, ``overlap`` keeps
its sums over ranks in flight through ``torch.compile``, ``options`` reads what a user may choose.
What depends on a version of vLLM stands in ``vllm_api``. Nothing outside this package imports
vLLM, and of it only ``vllm_api`` does so by name.
"""

"""Serving krakenlm's models, with vLLM or with the server of Transformers.

``serve`` and ``hf_serve`` start the servers, ``requests`` says how they are asked, ``machine`` what
suits this one. ``plugin`` tells vLLM of the model, ``vllm_model`` is the model as vLLM runs it,
``overlap`` keeps its sums over ranks in flight through ``torch.compile``, ``options`` reads what a
user may choose. ``benchmark`` measures served models, ``harness`` scores them. What depends on a
version of vLLM stands in ``vllm_api``; nothing outside this package imports vLLM.
"""

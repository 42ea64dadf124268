# SPDX-License-Identifier: Apache-2.0
"""Linear layers of transformers whose weight is read by other code than their own, and which so stay float."""

from __future__ import annotations

import torch

# By the name of the layer, the classes whose code computes with its weight, or casts activations to its dtype.
_PARENTS = {
    "atom_linear": ("EsmFold2AtomEncoder",),
    "audio_latent_proj": ("GradiumPhononTTSModel", "PocketTTSModel"),
    "audio_prompt_proj": ("GradiumPhononTTSModel", "PocketTTSModel"),
    "classifier": ("LongcatFlashTopkRouter",),
    "coords_linear": ("EsmFold2DiffusionModule",),
    "correction_coefs": ("Gemma3nTextAltUp",),
    "decoder": ("MobileBertLMPredictionHead",),
    "dense": ("MobileBertLMPredictionHead",),
    "distogram_head": ("EsmFold2Model",),
    "dt_proj": ("FalconMambaMixer", "JambaMambaMixer", "MambaMixer"),
    "embed": ("EsmFold2MSAEncoder", "EsmFold2RelativePositionEncoding"),
    "embedding_proj_layer": ("ColModernVBertForRetrieval", "ColPaliForRetrieval", "ColQwen2ForRetrieval"),
    "embedding_projection": ("Gemma4UnifiedMultimodalEmbedder",),
    "in_proj": ("DisentangledSelfAttention",),
    "input_linear": ("GraniteSpeech5Encoder",),
    "input_proj": ("Gemma4VisionPatchEmbedder",),
    "itm_head": ("Blip2ForImageTextRetrieval",),
    "k_linear": ("DabDetrMHAttentionMap",),
    "k_proj": ("ConditionalDetrMHAttentionMap", "DetrMHAttentionMap", "MaskFormerDetrMHAttentionMap", "WavLMAttention"),
    "kernel": ("TDNNLayer",),
    "lm_head": (
        "FalconMambaForCausalLM", "Gemma4AssistantForCausalLM", "Gemma4UnifiedAssistantForCausalLM",
        "HYV4ForCausalLM", "Mamba2ForCausalLM", "MambaForCausalLM", "xLSTMForCausalLM",
    ),
    "noise_proj": ("EsmFold2DiffusionConditioning",),
    "out_proj": ("WavLMAttention",),
    "output": ("RwkvSelfAttention",),
    "pae_head": ("EsmFold2ConfidenceHead",),
    "pair_proj": ("EsmFold2DiffusionConditioning", "EsmFold2LanguageModelEncoder"),
    "patch_dense": ("Gemma4UnifiedVisionEmbedder",),
    "pre_projection": ("Gemma4AssistantForCausalLM", "Gemma4UnifiedAssistantForCausalLM"),
    "prediction_coefs": ("Gemma3nTextAltUp",),
    "proj": ("JevForDecision", "NeoMMEMultiVectorHead"),
    "project_q": (
        "UniSpeechForPreTraining", "UniSpeechSatForPreTraining", "Wav2Vec2ConformerForPreTraining",
        "Wav2Vec2ForPreTraining",
    ),
    "q_proj": ("WavLMAttention",),
    "query_key": ("LSHSelfAttention",),
    "regression": ("EsmContactPredictionHead",),
    "rel_pos_bias": ("LayoutLMv2Encoder", "LayoutLMv3Encoder", "PPDocLayoutV2ReadingOrderEncoder"),
    "rel_pos_x_bias": ("LayoutLMv2Encoder", "LayoutLMv3Encoder", "PPDocLayoutV2ReadingOrderEncoder"),
    "rel_pos_y_bias": ("LayoutLMv2Encoder", "LayoutLMv3Encoder", "PPDocLayoutV2ReadingOrderEncoder"),
    "text_projection": ("Blip2ForImageTextRetrieval", "Blip2TextModelWithProjection"),
    "token_bonds": ("EsmFold2InputEmbedder",),
    "unembedding_projection": ("NeoMMEForMaskedLM",),
    "v_proj": ("WavLMAttention",),
    "value": ("LSHSelfAttention", "RwkvFeedForward"),
    "vision_projection": ("Blip2ForImageTextRetrieval", "Blip2VisionModelWithProjection"),
    "weights_proj": (
        "AXK2Indexer", "DeepseekV32Indexer", "Dots3NoteTextIndexer", "Glm5NextTextIndexer", "GlmMoeDsaIndexer",
        "HYV4Indexer", "MistralLarge4TextIndexer",
    ),
    "wg": ("HunYuanMoEV1Gate",),
}  # fmt: skip


def is_read_by_parent(model: torch.nn.Module, name: str) -> bool:
    """Whether the module that holds the layer ``name`` is known to read its weight."""
    parent, _, child = name.rpartition(".")
    return type(model.get_submodule(parent)).__name__ in _PARENTS.get(child, ())

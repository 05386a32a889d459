"""Networks: attention, mixtures of experts, sparse and scale-invariant layers, the transformer of them, and feature selection."""

from rlopt.nn.assignment import RouterStats
from rlopt.nn.attention import Attention, AttentionState, ReluAttention, SoftmaxAttention
from rlopt.nn.attention_masks import AttentionMask, BlockToeplitz2D, Decay, Toeplitz
from rlopt.nn.balance import balance_loss, importance_loss, load_loss, router_z_loss
from rlopt.nn.dropout import GeneratorDropout
from rlopt.nn.expert_parallel import (
    clip_grad_norm,
    expert_parameters,
    gather_state_dict,
    load_gathered_state_dict,
    shard_experts,
    share_balance,
    sync_stats,
    total_grad_norm,
)
from rlopt.nn.feature_selection import FeatureSelection, FeatureSelector, select_features
from rlopt.nn.gates import GRUGate, ResidualGate
from rlopt.nn.language_model import CharTransformer, CharTransformerConfig, LanguageModelOutput
from rlopt.nn.linear_attention import FavorAttention, LinearAttention
from rlopt.nn.mlp import DenseMLP
from rlopt.nn.moe import MoE, MoEOutput
from rlopt.nn.multi_head import MultiHeadAttention
from rlopt.nn.random_features import EluFeatures, FavorPlus, FavorPlusPlus, FeatureMap, ReluFeatures
from rlopt.nn.rotary import rotate
from rlopt.nn.routing import ExpertChoice, TokenChoice
from rlopt.nn.scale_invariant import (
    LayerNormNoAffine,
    QueryKeyNormAttention,
    ScaleInvariantAttention,
    ScaleInvariantBlock,
    ScaleInvariantLinear,
    ScaleInvariantMLP,
)
from rlopt.nn.sequential_attention import SequentialAttention
from rlopt.nn.soft_moe import SoftMoE
from rlopt.nn.sparsity_monitor import SparsityMonitor
from rlopt.nn.tokenizers import ImagePatchTokenizer, PerDimensionTokenizer, StepTokenizer, VectorPatchTokenizer
from rlopt.nn.topk_mlp import SparseActivations, TopKActivation, TopKMLP, TopKSelection
from rlopt.nn.transformer import Transformer, TransformerBlock, TransformerOutput
from rlopt.nn.transformer_config import (
    DenseMLPConfig,
    FavorAttentionConfig,
    LinearAttentionConfig,
    MoEConfig,
    ReluAttentionConfig,
    ScaleInvariantConfig,
    SoftmaxAttentionConfig,
    SoftMoEConfig,
    TopKMLPConfig,
    TransformerConfig,
    TreeAttentionConfig,
)
from rlopt.nn.tree_attention import StraightThrough, TreeAttention, suggest_height
from rlopt.nn.tree_bootstrap import TreeBootstrapSchedule, build_tree, find_layer_groups

__all__ = [
    "Attention",
    "AttentionMask",
    "AttentionState",
    "BlockToeplitz2D",
    "CharTransformer",
    "CharTransformerConfig",
    "Decay",
    "DenseMLP",
    "DenseMLPConfig",
    "EluFeatures",
    "ExpertChoice",
    "FavorAttention",
    "FavorAttentionConfig",
    "FavorPlus",
    "FavorPlusPlus",
    "FeatureMap",
    "FeatureSelection",
    "FeatureSelector",
    "GRUGate",
    "GeneratorDropout",
    "ImagePatchTokenizer",
    "LanguageModelOutput",
    "LayerNormNoAffine",
    "LinearAttention",
    "LinearAttentionConfig",
    "MoE",
    "MoEConfig",
    "MoEOutput",
    "MultiHeadAttention",
    "PerDimensionTokenizer",
    "QueryKeyNormAttention",
    "ReluAttention",
    "ReluAttentionConfig",
    "ReluFeatures",
    "ResidualGate",
    "RouterStats",
    "ScaleInvariantAttention",
    "ScaleInvariantBlock",
    "ScaleInvariantConfig",
    "ScaleInvariantLinear",
    "ScaleInvariantMLP",
    "SequentialAttention",
    "SoftMoE",
    "SoftMoEConfig",
    "SoftmaxAttention",
    "SoftmaxAttentionConfig",
    "SparseActivations",
    "SparsityMonitor",
    "StepTokenizer",
    "StraightThrough",
    "Toeplitz",
    "TokenChoice",
    "TopKActivation",
    "TopKMLP",
    "TopKMLPConfig",
    "TopKSelection",
    "Transformer",
    "TransformerBlock",
    "TransformerConfig",
    "TransformerOutput",
    "TreeAttention",
    "TreeAttentionConfig",
    "TreeBootstrapSchedule",
    "VectorPatchTokenizer",
    "balance_loss",
    "build_tree",
    "clip_grad_norm",
    "expert_parameters",
    "find_layer_groups",
    "gather_state_dict",
    "importance_loss",
    "load_gathered_state_dict",
    "load_loss",
    "rotate",
    "router_z_loss",
    "select_features",
    "shard_experts",
    "share_balance",
    "suggest_height",
    "sync_stats",
    "total_grad_norm",
]

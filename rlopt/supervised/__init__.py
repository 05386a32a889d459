"""One trainer for any model, loss, optimizer and data, and ready-made tasks."""

from rlopt.supervised.batches import ArrayData, TextWindows, TrainingData
from rlopt.supervised.config import EarlyStopping, TrainerConfig
from rlopt.supervised.distributed import Processes, process_group
from rlopt.supervised.losses import AllOutputs
from rlopt.supervised.masking import MaskedWindows, masked_language_model
from rlopt.supervised.recall import RecallConfig, RecallData, associative_recall
from rlopt.supervised.schedules import Constant, WarmupDecay
from rlopt.supervised.tasks import SupervisedTask, classification, deep_autoencoder, language_model
from rlopt.supervised.trainer import Trainer

__all__ = [
    "AllOutputs",
    "ArrayData",
    "Constant",
    "EarlyStopping",
    "MaskedWindows",
    "Processes",
    "RecallConfig",
    "RecallData",
    "SupervisedTask",
    "TextWindows",
    "Trainer",
    "TrainerConfig",
    "TrainingData",
    "WarmupDecay",
    "associative_recall",
    "classification",
    "deep_autoencoder",
    "language_model",
    "masked_language_model",
    "process_group",
]

"""One trainer for any model, loss, optimizer and data, and ready-made tasks."""

from rlopt.supervised.batches import ArrayData, TextWindows, TrainingData
from rlopt.supervised.config import EarlyStopping, TrainerConfig
from rlopt.supervised.distributed import Processes, process_group
from rlopt.supervised.schedules import Constant, WarmupDecay
from rlopt.supervised.tasks import SupervisedTask, classification, deep_autoencoder, language_model
from rlopt.supervised.trainer import Trainer

__all__ = [
    "ArrayData",
    "Constant",
    "EarlyStopping",
    "Processes",
    "SupervisedTask",
    "TextWindows",
    "Trainer",
    "TrainerConfig",
    "TrainingData",
    "WarmupDecay",
    "classification",
    "deep_autoencoder",
    "language_model",
    "process_group",
]

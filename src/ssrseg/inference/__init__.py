"""A trained model, used: on single images and batches, folders, videos and labelled sets, and exported."""

from ssrseg.inference.choose import Choice, choice_table, choose
from ssrseg.inference.evaluate import evaluate, evaluate_model, evaluating, scores_table
from ssrseg.inference.export import ExportReport, export, graph_signature
from ssrseg.inference.metrics import Scores
from ssrseg.inference.predict import Predictions, predict
from ssrseg.inference.predictor import Predictor
from ssrseg.inference.recalibrate import Recalibrated, recalibrate
from ssrseg.inference.sliding_window import build_inference
from ssrseg.inference.suggest import Suggestion, suggest
from ssrseg.inference.tryout import try_out
from ssrseg.inference.video import LabelledVideo, UnreadableVideo, find_videos, is_video, predict_video

__all__ = [
    "Choice",
    "ExportReport",
    "LabelledVideo",
    "Predictions",
    "Predictor",
    "Recalibrated",
    "Scores",
    "Suggestion",
    "UnreadableVideo",
    "build_inference",
    "choice_table",
    "choose",
    "evaluate",
    "evaluate_model",
    "evaluating",
    "export",
    "find_videos",
    "graph_signature",
    "is_video",
    "predict",
    "predict_video",
    "recalibrate",
    "scores_table",
    "suggest",
    "try_out",
]

"""A trained model, used: on single images and batches, folders, videos and labelled sets, and exported."""

from ssrseg.inference.choose import Choice as Choice, choice_table as choice_table, choose as choose
from ssrseg.inference.evaluate import (
    evaluate as evaluate,
    evaluate_model as evaluate_model,
    evaluating as evaluating,
    scores_table as scores_table,
)
from ssrseg.inference.export import ExportReport as ExportReport, export as export, graph_signature as graph_signature
from ssrseg.inference.metrics import Scores as Scores
from ssrseg.inference.predict import Predictions as Predictions, predict as predict
from ssrseg.inference.predictor import Predictor as Predictor
from ssrseg.inference.recalibrate import Recalibrated as Recalibrated, recalibrate as recalibrate
from ssrseg.inference.sliding_window import build_inference as build_inference
from ssrseg.inference.suggest import Suggestion as Suggestion, suggest as suggest
from ssrseg.inference.tryout import try_out as try_out
from ssrseg.inference.video import (
    LabelledVideo as LabelledVideo,
    UnreadableVideo as UnreadableVideo,
    find_videos as find_videos,
    is_video as is_video,
    predict_video as predict_video,
)

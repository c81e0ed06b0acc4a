"""Which check a kind of case gets, and how close we must be beyond the case's own tolerance."""

from dataclasses import dataclass

from parity import hrda, models, pieces, runs, steps, undoing
from parity.cases import Same

FUNCTION, NETWORK, EXACT = 1e-5, 1e-4, 0.0


@dataclass(frozen=True)
class Kind:
    """A check, and the worst relative difference that it may have (none: the case's own tolerance is all)."""

    check: object
    aim: float | None


KINDS = {
    "backbone_features": Kind(models.backbone_features, NETWORK),
    "backbone_checksums": Kind(models.backbone_checksums, NETWORK),
    "head_logits": Kind(models.head_logits, NETWORK),
    "segmentor_whole": Kind(models.segmentor, NETWORK),
    "segmentor_slide": Kind(models.segmentor, NETWORK),
    "segmentor_checksums": Kind(models.segmentor_checksums, NETWORK),
    "parameter_counts": Kind(models.parameter_counts, EXACT),
    "checkpoint_names": Kind(models.checkpoint_names, EXACT),
    "drop_path_rates": Kind(models.drop_path_rates, FUNCTION),
    "classmix": Kind(pieces.classmix, EXACT),
    "strong_augmentation": Kind(pieces.strong_augmentation, FUNCTION),
    "downscale_label_ratio": Kind(pieces.downscale_label_ratio, EXACT),
    "masked_feature_distance": Kind(pieces.masked_feature_distance, FUNCTION),
    "pseudo_label": Kind(pieces.pseudo_labels, FUNCTION),
    "decode_loss": Kind(pieces.decode_loss, FUNCTION),
    "block_mask": Kind(pieces.block_masks, EXACT),
    "ema": Kind(pieces.ema, FUNCTION),
    "rescale_size": Kind(runs.rescaled, EXACT),
    "data_pipeline": Kind(runs.pipeline, None),  # bytes: two grey levels
    "cat_max_ratio": Kind(runs.cat_max_ratio, EXACT),
    "rare_class_sampling": Kind(runs.rare_classes, FUNCTION),
    "label_map": Kind(runs.label_map, EXACT),
    "lr_schedule": Kind(runs.lr_schedule, FUNCTION),
    "param_groups": Kind(runs.param_groups, EXACT),
    "metrics": Kind(runs.metrics, FUNCTION),
    "train_step": Kind(steps.train_step, NETWORK),
    "train_step_ssr": Kind(steps.train_step, NETWORK),
    "undoing_network": Kind(undoing.network, NETWORK),
    "undoing_frozen_bn": Kind(undoing.frozen_norm, FUNCTION),
    "undoing_discriminator": Kind(undoing.discriminator, FUNCTION),
    "undoing_domain_loss": Kind(undoing.domain_losses, FUNCTION),
    "undoing_align_step": Kind(undoing.align_step, NETWORK),
    "undoing_refine_loss": Kind(undoing.refine_loss, FUNCTION),
    "undoing_refine_step": Kind(undoing.refine_step, NETWORK),
    "undoing_supervised_step": Kind(undoing.supervised_step, NETWORK),
    "undoing_adjusted": Kind(undoing.adjusted, FUNCTION),
    "undoing_target_counts": Kind(undoing.target_counts, FUNCTION),
    "undoing_class_balanced_list": Kind(undoing.class_balanced, FUNCTION),
    "undoing_metrics": Kind(undoing.metrics, FUNCTION),
    "undoing_lr_schedule": Kind(undoing.lr_schedule, FUNCTION),
    "undoing_checkpoint_names": Kind(undoing.undoing_names, EXACT),
    "dacs_checkpoint_names": Kind(undoing.dacs_names, EXACT),
    "dacs_network": Kind(undoing.dacs_network, NETWORK),
    "dacs_step": Kind(undoing.dacs_step, NETWORK),
    "dacs_param_groups": Kind(undoing.dacs_param_groups, EXACT),
    "dacs_lr_schedule": Kind(undoing.lr_schedule, FUNCTION),
    "hrda_head": Kind(hrda.head, NETWORK),
    "hrda_whole": Kind(hrda.whole, NETWORK),
    "hrda_slide": Kind(hrda.whole, NETWORK),
    "hrda_train_step": Kind(steps.train_step, NETWORK),
    "hrda_margins": Kind(hrda.margins, EXACT),
    "hrda_crop_box": Kind(hrda.crop_boxes, EXACT),
    "dacs_blur": Kind(undoing.dacs_blur, FUNCTION),
}


def measure(case):
    """The worst relative difference of a case; `AssertionError` if it is outside the case's tolerance."""
    tolerance = case.record["tolerance"]
    same = Same(tolerance["rtol"], tolerance["atol"])
    KINDS[case.kind].check(case, same)
    assert same.compared, "nothing was compared"
    return same.worst

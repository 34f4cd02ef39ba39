"""KerasHub's families, built small: real structure, random weights, two layers or more.

Each is a function that returns a model, and a function that draws a number of inputs for it: an
array, or a dict by the names of the inputs. `built` gives the scales, offsets and statistics that
training leaves.
"""

import importlib

import keras
import numpy as np

from tfcompress.graph.keras_internals import input_struct, producing_operation

TOKENS, WORDS = 16, 96
"""Length of texts, and words in the vocabulary."""


class _Hub:
    """keras_hub, imported at its first use."""

    def __getattr__(self, name):
        return getattr(importlib.import_module("keras_hub"), name)


hub = _Hub()
TEXT = {
    "vocabulary_size": WORDS,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 32,
    "intermediate_dim": 64,
}
POSITIONS = {"max_sequence_length": TOKENS}
LLAMA = {
    "vocabulary_size": WORDS,
    "num_layers": 2,
    "num_query_heads": 4,
    "num_key_value_heads": 2,
    "hidden_dim": 32,
    "intermediate_dim": 64,
}
GEMMA = {**LLAMA, "head_dim": 8}
VIT = {"patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 32}
IMAGE = (32, 32, 3)


def _name(tensor):
    return producing_operation(tensor).name


def text(model, generator, count):
    """Draws texts of several lengths for every input of words, masks and segments."""
    lengths = generator.integers(TOKENS // 2, TOKENS + 1, count)
    mask = (np.arange(TOKENS) < lengths[:, None]).astype("int32")
    drawn = {}
    for tensor in model.inputs:
        name = _name(tensor)
        if "mask" in name:
            drawn[name] = mask.astype(keras.backend.standardize_dtype(tensor.dtype))
        elif "segment" in name:
            drawn[name] = (np.arange(TOKENS) >= lengths[:, None] // 2).astype("int32") * mask
        elif "position" in name:
            drawn[name] = np.tile(np.arange(TOKENS, dtype="int32"), (count, 1))
        else:
            words = generator.integers(2, WORDS, (count, TOKENS)).astype("int32")
            drawn[name] = np.where(mask == 1, words, 1).astype("int32")
    return drawn


def images(model, generator, count):
    """Draws pictures for every input."""
    drawn = {_name(tensor): pictures(tensor, generator, count) for tensor in model.inputs}
    return drawn if isinstance(input_struct(model), dict) else next(iter(drawn.values()))


def pictures(tensor, generator, count):
    """Draws blobs of several sizes, as smooth as photographs, values about -1 to 1."""
    size = [IMAGE[0] if n is None else n for n in tensor.shape[1:3]]
    coarse = [generator.normal(0, 1, (count, n, n, 3)) for n in (2, 4, 8)]
    return np.mean([keras.ops.image.resize(c, size) for c in coarse], axis=0).astype("float32")


def images_and_text(model, generator, count):
    """Draws both, by the rank of the input."""
    drawn = text(model, generator, count)
    for tensor in model.inputs:
        name = _name(tensor)
        if len(tensor.shape) == 4:
            drawn[name] = pictures(tensor, generator, count)
        elif tensor.shape[1] is not None:
            words = generator.integers(2, WORDS, (count, tensor.shape[1]))
            drawn[name] = (words * 0 + 1 if "mask" in name else words).astype("int32")
    return drawn


def whisper_features(model, generator, count):
    """Draws spectrograms and texts."""
    drawn = text(model, generator, count)
    drawn["encoder_features"] = generator.normal(0, 1, (count, 32, 80)).astype("float32")
    return drawn


def moonshine_sound(model, generator, count):
    """Draws sound and texts."""
    drawn = text(model, generator, count)
    drawn["encoder_input_values"] = generator.normal(0, 1, (count, 4000, 1)).astype("float32")
    drawn["encoder_padding_mask"] = np.ones((count, 4000), bool)
    return drawn


def resnet(block="basic_block", before=False, **more):
    options = {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 64, 96],
        "stackwise_num_blocks": [2, 2, 2],
        "stackwise_num_strides": [1, 2, 2],
        "image_shape": IMAGE,
    }
    return hub.models.ResNetBackbone(
        block_type=block, use_pre_activation=before, **{**options, **more}
    )


def resnet_vd(block="bottleneck_block_vd", **more):
    stem = {"input_conv_filters": [16, 16, 64], "input_conv_kernel_sizes": [3, 3, 3]}
    return resnet(block, **stem, **more)


def efficientnet(kinds, **more):
    return hub.models.EfficientNetBackbone(
        stackwise_kernel_sizes=[3, 3, 5],
        stackwise_num_repeats=[1, 2, 2],
        stackwise_input_filters=[16, 16, 24],
        stackwise_output_filters=[16, 24, 32],
        stackwise_expansion_ratios=[1, 4, 4],
        stackwise_squeeze_and_excite_ratios=[0.25, 0.25, 0.25] if kinds[0] != "cba" else [0] * 3,
        stackwise_strides=[1, 2, 2],
        stackwise_block_types=kinds,
        stackwise_force_input_filters=[0] * 3,
        stackwise_nores_option=[False] * 3,
        stackwise_width_coefficients=[1.0] * 3,
        stackwise_depth_coefficients=[1.0] * 3,
        input_shape=IMAGE,
        num_features=64,
        **more,
    )


def mobilenet(**more):
    options = {
        "stackwise_expansion": [[40, 56], [64, 72]],
        "stackwise_num_blocks": [2, 2],
        "stackwise_num_filters": [[16, 16], [24, 24]],
        "stackwise_kernel_size": [[3, 3], [5, 5]],
        "stackwise_num_strides": [[2, 1], [2, 1]],
        "stackwise_se_ratio": [[None, None], [0.25, 0.25]],
        "stackwise_activation": [["relu", "relu"], ["hard_swish", "hard_swish"]],
        "stackwise_padding": [[1, 1], [2, 2]],
        "output_num_filters": 64,
        "depthwise_filters": 8,
        "depthwise_stride": 2,
        "depthwise_residual": False,
        "squeeze_and_excite": 0.5,
        "last_layer_filter": 96,
        "image_shape": IMAGE,
    }
    return hub.models.MobileNetBackbone(**{**options, **more})


def mit():
    return hub.models.MiTBackbone(
        layerwise_depths=[2, 2],
        num_layers=2,
        layerwise_num_heads=[2, 4],
        layerwise_sr_ratios=[4, 2],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        image_shape=IMAGE,
        hidden_dims=[16, 32],
    )


def vit_det():
    return hub.models.ViTDetBackbone(
        hidden_size=32,
        num_layers=2,
        intermediate_dim=64,
        num_heads=2,
        global_attention_layer_indices=[1],
        image_shape=IMAGE,
        patch_size=4,
        num_output_channels=16,
        window_size=3,
    )


def sam():
    layers = importlib.import_module("keras_hub.layers")
    return hub.models.SAMBackbone(
        image_encoder=hub.models.ViTDetBackbone(
            hidden_size=16,
            num_layers=2,
            intermediate_dim=32,
            num_heads=2,
            global_attention_layer_indices=[1],
            patch_size=16,
            num_output_channels=8,
            window_size=2,
            image_shape=(128, 128, 3),
        ),
        prompt_encoder=layers.SAMPromptEncoder(
            hidden_size=8,
            image_embedding_size=(8, 8),
            input_image_size=(128, 128),
            mask_in_channels=16,
        ),
        mask_decoder=layers.SAMMaskDecoder(
            num_layers=2,
            hidden_size=8,
            intermediate_dim=32,
            num_heads=2,
            embedding_dim=8,
            num_multimask_outputs=3,
            iou_head_depth=3,
            iou_head_hidden_dim=8,
        ),
    )


def sam_prompts(model, generator, count):
    """Draws a picture, a point and a box, and no mask."""
    return {
        "images": generator.normal(0, 1, (count, 128, 128, 3)).astype("float32"),
        "points": generator.uniform(0, 128, (count, 1, 2)).astype("float32"),
        "labels": np.ones((count, 1), "float32"),
        "boxes": generator.uniform(0, 128, (count, 1, 2, 2)).astype("float32"),
        "masks": np.zeros((count, 0, 32, 32, 1), "float32"),
    }


def hgnet():
    return hub.models.HGNetV2Backbone(
        depths=[2, 2],
        embedding_size=16,
        hidden_sizes=[32, 64],
        stem_channels=[3, 16, 16],
        hidden_act="relu",
        use_learnable_affine_block=True,
        stackwise_stage_filters=[[16, 16, 32, 1, 2, 3], [32, 16, 64, 1, 2, 3]],
        apply_downsample=[False, True],
        use_lightweight_conv_block=[False, True],
        image_shape=IMAGE,
    )


def cspnet():
    return hub.models.CSPNetBackbone(
        stem_filters=16,
        stem_kernel_size=3,
        stem_strides=1,
        stackwise_depth=[1, 2],
        stackwise_strides=2,
        stackwise_num_filters=[16, 24],
        block_type="dark_block",
        stage_type="csp",
        bottle_ratio=(0.5, 1.0),
        block_ratio=(1.0, 0.5),
        expand_ratio=(2.0, 1.0),
        stem_padding="same",
        down_growth=True,
        image_shape=IMAGE,
    )


def whisper():
    return hub.models.WhisperBackbone(
        **TEXT, max_encoder_sequence_length=32, max_decoder_sequence_length=TOKENS
    )


def moonshine():
    return hub.models.MoonshineBackbone(
        vocabulary_size=WORDS,
        filter_dim=32,
        encoder_num_layers=2,
        decoder_num_layers=2,
        hidden_dim=32,
        intermediate_dim=64,
        encoder_num_heads=2,
        decoder_num_heads=2,
    )


def clip(kind):
    models = hub.models
    vision = {"patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 32}
    vision |= {"intermediate_dim": 64, "image_shape": IMAGE}
    words = {**TEXT, "embedding_dim": 32, "max_sequence_length": TOKENS}
    parts = {
        "vision_encoder": getattr(models, f"{kind}VisionEncoder")(**vision),
        "text_encoder": getattr(models, f"{kind}TextEncoder")(**words),
    }
    more = {"projection_dim": 24} if kind == "CLIP" else {}
    whole = getattr(models, f"{kind}Backbone")(**parts, **more)
    # What the backbone itself puts out compares all images of a batch with all of its texts.
    inputs = {"images": keras.Input(IMAGE, name="images")}
    inputs["token_ids"] = keras.Input((None,), dtype="int32", name="token_ids")
    embedded = {
        "image": whole.get_vision_embeddings(inputs["images"]),
        "text": whole.get_text_embeddings(inputs["token_ids"]),
    }
    return keras.Model(inputs, embedded)


def deeplab():
    return hub.models.DeepLabV3Backbone(
        image_encoder=resnet(image_shape=(64, 64, 3)),
        spatial_pyramid_pooling_key="P4",
        upsampling_size=4,
        dilation_rates=[2, 4],
        low_level_feature_key="P2",
        projection_filters=16,
        image_shape=(64, 64, 3),
    )


def retinanet(norm=False):
    encoder = resnet(
        image_shape=(64, 64, 3),
        stackwise_num_filters=[64, 32, 48, 64],
        stackwise_num_blocks=[1, 1, 1, 2],
        stackwise_num_strides=[1, 2, 2, 2],
    )
    return hub.models.RetinaNetBackbone(
        image_encoder=encoder,
        min_level=3,
        max_level=6,
        use_p5=True,
        use_fpn_batch_norm=norm,
        image_shape=(64, 64, 3),
    )


def vae():
    module = importlib.import_module("keras_hub.src.models.vae.vae_backbone")
    return module.VAEBackbone(
        encoder_num_filters=[32, 32],
        encoder_num_blocks=[1, 1],
        decoder_num_filters=[32, 32],
        decoder_num_blocks=[1, 1],
        sampler_method="mode",
        input_channels=3,
        image_shape=IMAGE,
    )


def depth_anything():
    return hub.models.DepthAnythingBackbone(
        image_encoder=hub.models.DINOV2Backbone(
            8,
            4,
            32,
            2,
            64,
            image_shape=(64, 64, 3),
            position_embedding_shape=(64, 64, 3),
            apply_layernorm=True,
            name="image_encoder",
        ),
        reassemble_factors=[4, 2, 1, 0.5],
        neck_hidden_dims=[16, 16, 24, 32],
        fusion_hidden_dim=32,
        head_hidden_dim=16,
        head_in_index=-1,
        feature_keys=["stage1", "stage2", "stage3", "stage4"],
    )


ENCODERS = {
    "Bert": (lambda: hub.models.BertBackbone(**TEXT, **POSITIONS), text),
    "DistilBert": (lambda: hub.models.DistilBertBackbone(**TEXT, **POSITIONS), text),
    "Roberta": (lambda: hub.models.RobertaBackbone(**TEXT, max_sequence_length=TOKENS), text),
    "XLMRoberta": (lambda: hub.models.XLMRobertaBackbone(**TEXT, **POSITIONS), text),
    "Albert": (lambda: hub.models.AlbertBackbone(**TEXT, embedding_dim=16, **POSITIONS), text),
    "Electra": (
        lambda: hub.models.ElectraBackbone(
            vocab_size=WORDS,
            **{k: v for k, v in TEXT.items() if k != "vocabulary_size"},
            embedding_dim=16,
            **POSITIONS,
        ),
        text,
    ),
    "DebertaV3": (
        lambda: hub.models.DebertaV3Backbone(**TEXT, **POSITIONS, bucket_size=8),
        text,
    ),
    "FNet": (
        lambda: hub.models.FNetBackbone(
            **{k: v for k, v in TEXT.items() if k != "num_heads"}, **POSITIONS
        ),
        text,
    ),
    "RoformerV2": (lambda: hub.models.RoformerV2Backbone(**TEXT, head_size=16), text),
    "ESM2": (lambda: hub.models.ESMBackbone(**TEXT), text),
    "XLNet": (lambda: hub.models.XLNetBackbone(**TEXT), text),
    "BertTextClassifier": (
        lambda: hub.models.BertTextClassifier(
            hub.models.BertBackbone(**TEXT, **POSITIONS), num_classes=4
        ),
        text,
    ),
}
SEQUENCES = {
    "T5": (lambda: hub.models.T5Backbone(**TEXT), text),
    "Bart": (lambda: hub.models.BartBackbone(**TEXT, **POSITIONS), text),
    "Whisper": (whisper, whisper_features),
    "Moonshine": (moonshine, moonshine_sound),
    "GPT2": (lambda: hub.models.GPT2Backbone(**TEXT, **POSITIONS), text),
    "OPT": (lambda: hub.models.OPTBackbone(**TEXT, **POSITIONS), text),
    "GPTNeoX": (lambda: hub.models.GPTNeoXBackbone(**TEXT, **POSITIONS), text),
    "Bloom": (lambda: hub.models.BloomBackbone(**TEXT), text),
    "Gemma": (lambda: hub.models.GemmaBackbone(**GEMMA), text),
    "Llama": (lambda: hub.models.LlamaBackbone(**LLAMA), text),
    "Llama3": (lambda: hub.models.Llama3Backbone(**LLAMA), text),
    "Mistral": (lambda: hub.models.MistralBackbone(**LLAMA), text),
    "Qwen": (lambda: hub.models.QwenBackbone(**LLAMA), text),
    "Qwen3": (lambda: hub.models.Qwen3Backbone(**GEMMA), text),
    "Phi3": (lambda: hub.models.Phi3Backbone(**LLAMA), text),
}
VISION = {
    "ViT": (lambda: hub.models.ViTBackbone(image_shape=IMAGE, mlp_dim=64, **VIT), images),
    "DeiT": (
        lambda: hub.models.DeiTBackbone(image_shape=IMAGE, intermediate_dim=64, **VIT),
        images,
    ),
    "DINOV2": (
        lambda: hub.models.DINOV2Backbone(
            image_shape=IMAGE, position_embedding_shape=IMAGE, intermediate_dim=64, **VIT
        ),
        images,
    ),
    "DINOV3": (
        lambda: hub.models.DINOV3Backbone(image_shape=IMAGE, intermediate_dim=64, **VIT),
        images,
    ),
    "Swin": (
        lambda: hub.models.SwinTransformerBackbone(
            image_shape=IMAGE, embed_dim=32, depths=(2, 2), num_heads=(2, 4), window_size=4
        ),
        images,
    ),
    "MiT": (mit, images),
    "SegFormer": (
        lambda: hub.models.SegFormerBackbone(image_encoder=mit(), projection_filters=32),
        images,
    ),
    "ViTDet": (vit_det, images),
    "SAM": (sam, sam_prompts),
    "CLIP": (lambda: clip("CLIP"), images_and_text),
    "SigLIP": (lambda: clip("SigLIP"), images_and_text),
    "ResNet": (resnet, images),
    "ResNetV2": (lambda: resnet("bottleneck_block", True), images),
    "ResNetVd": (resnet_vd, images),
    "MobileNet": (mobilenet, images),
    "EfficientNet": (lambda: efficientnet(["v1", "v1", "v1"]), images),
    "EfficientNetV2": (lambda: efficientnet(["fused", "fused", "unfused"]), images),
    "EfficientNetLite": (lambda: efficientnet(["cba", "v1", "v1"], activation="relu6"), images),
    "CSPNet": (cspnet, images),
    "DenseNet": (
        lambda: hub.models.DenseNetBackbone([2, 2], image_shape=IMAGE, growth_rate=8),
        images,
    ),
    "HGNetV2": (hgnet, images),
    "VGG": (lambda: hub.models.VGGBackbone([1, 2], [16, 24], image_shape=IMAGE), images),
    "Xception": (
        lambda: hub.models.XceptionBackbone(
            [[16, 24], [32, 32]], [False, True], image_shape=(64, 64, 3)
        ),
        images,
    ),
    "DeepLabV3": (deeplab, images),
    "RetinaNet": (retinanet, images),
    "RetinaNet, BatchNorm": (lambda: retinanet(True), images),
    "DepthAnything": (depth_anything, images),
    "VAE": (vae, images),
}
FAMILIES = {**ENCODERS, **SEQUENCES, **VISION}


def built(name):
    """Returns (model, draw): draw(generator, count) gives inputs."""
    keras.utils.set_random_seed(0)
    make, draw = FAMILIES[name]
    model = make()
    generator = np.random.default_rng(0)
    model(draw(model, generator, 2))
    for layer in model._flatten_layers():
        for variable in layer._trainable_variables + layer._non_trainable_variables:
            value = _trained(layer, variable, generator)
            if value is not None:
                variable.assign(value)
    return model, lambda generator, count: draw(model, generator, count)


def _trained(layer, variable, generator):
    """Returns what training could have left in a scale, an offset or a statistic."""
    name, shape = variable.name.split("/")[-1], variable.shape
    if len(shape) > 1 or not keras.backend.is_float_dtype(variable.dtype):
        return None
    if "variance" in name:
        return generator.uniform(0.5, 1.5, shape)
    if name == "gamma" or "scale" in name:
        # RMS normalization of some families multiplies by one more than its scale.
        centre = float(np.mean(keras.ops.convert_to_numpy(variable)))
        return centre + generator.uniform(-0.5, 0.5, shape)
    if any(part in name for part in ("beta", "bias", "mean")):
        return generator.normal(0, 0.1, shape)
    return None

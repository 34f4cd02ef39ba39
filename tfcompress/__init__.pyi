"""Every public name and the module that it lives in: the one list of them.

`__init__.py` reads it, and loads each when it is first used; type checkers and editors read it too.
"""

from tfcompress.backup import BackupAndRestore as BackupAndRestore
from tfcompress.callbacks import CompressionSummaries as CompressionSummaries
from tfcompress.callbacks import FreezeQuantization as FreezeQuantization
from tfcompress.callbacks import TeacherAgreement as TeacherAgreement
from tfcompress.devices.c_source import write_c_source as write_c_source
from tfcompress.devices.c_source import write_golden as write_golden
from tfcompress.devices.ethos_u import EthosUResult as EthosUResult
from tfcompress.devices.ethos_u import compile_ethos_u as compile_ethos_u
from tfcompress.devices.micro import MicroResult as MicroResult
from tfcompress.devices.micro import run_micro as run_micro
from tfcompress.distill.cache import cache_teacher as cache_teacher
from tfcompress.distill.cached import CachedTeacher as CachedTeacher
from tfcompress.distill.distiller import Distiller as Distiller
from tfcompress.distill.losses.base import DistillationLoss as DistillationLoss
from tfcompress.distill.losses.feature import FSP as FSP
from tfcompress.distill.losses.feature import AttentionMaps as AttentionMaps
from tfcompress.distill.losses.feature import AttentionTransfer as AttentionTransfer
from tfcompress.distill.losses.feature import FeatureMatching as FeatureMatching
from tfcompress.distill.losses.feature import tinybert_losses as tinybert_losses
from tfcompress.distill.losses.relation import RKDAngle as RKDAngle
from tfcompress.distill.losses.relation import RKDDistance as RKDDistance
from tfcompress.distill.losses.relation import SimilarityPreserving as SimilarityPreserving
from tfcompress.distill.losses.response import DecoupledTargets as DecoupledTargets
from tfcompress.distill.losses.response import HardTargets as HardTargets
from tfcompress.distill.losses.response import SoftTargets as SoftTargets
from tfcompress.distill.teachers import ensemble as ensemble
from tfcompress.errors import CompressionWarning as CompressionWarning
from tfcompress.errors import ExportError as ExportError
from tfcompress.export.compare_outputs import Agreement as Agreement
from tfcompress.export.export_tflite import ExportResult as ExportResult
from tfcompress.export.export_tflite import export_tflite as export_tflite
from tfcompress.graph.describe import describe_layer as describe_layer
from tfcompress.graph.preprocessing import split_preprocessing as split_preprocessing
from tfcompress.legacy import from_tf_keras as from_tf_keras
from tfcompress.lowering.strip import strip as strip
from tfcompress.measure.comparison import Comparison as Comparison
from tfcompress.measure.comparison import compare as compare
from tfcompress.measure.layer_errors import LayerErrors as LayerErrors
from tfcompress.measure.layer_errors import layer_errors as layer_errors
from tfcompress.measure.summary import LayerSummary as LayerSummary
from tfcompress.measure.summary import Summary as Summary
from tfcompress.measure.summary import summary as summary
from tfcompress.measure.weight_histograms import Histograms as Histograms
from tfcompress.measure.weight_histograms import histograms as histograms
from tfcompress.quantization.input_samples import forget_samples as forget_samples
from tfcompress.quantization.quantize import quantize as quantize
from tfcompress.rewrite.channels.regularize import GroupLasso as GroupLasso
from tfcompress.rewrite.channels.regularize import regularize_channels as regularize_channels
from tfcompress.rewrite.depth import drop_layers as drop_layers
from tfcompress.rewrite.depth import share_layers as share_layers
from tfcompress.rewrite.low_rank import factorize as factorize
from tfcompress.scheme import QuantizationScheme as QuantizationScheme
from tfcompress.tflite.delegates import DelegateReport as DelegateReport
from tfcompress.tflite.delegates import delegate_report as delegate_report
from tfcompress.tflite.inspect import FileReport as FileReport
from tfcompress.tflite.inspect import inspect_tflite as inspect_tflite
from tfcompress.tflite.profile import Profile as Profile
from tfcompress.tflite.profile import profile_tflite as profile_tflite
from tfcompress.tflite.run import TFLiteModel as TFLiteModel
from tfcompress.transforms.base import WeightTransform as WeightTransform
from tfcompress.transforms.schedules import ConstantSparsity as ConstantSparsity
from tfcompress.transforms.schedules import PolynomialDecay as PolynomialDecay
from tfcompress.tune.channels import prune_channels as prune_channels
from tfcompress.tune.precision import AssignedScheme as AssignedScheme
from tfcompress.tune.precision import assign_precision as assign_precision
from tfcompress.tune.sensitivity import Sensitivity as Sensitivity
from tfcompress.tune.sensitivity import sensitivity as sensitivity
from tfcompress.wrap.cluster import cluster as cluster
from tfcompress.wrap.prune import prune as prune
from tfcompress.wrap.wrapper import CompressionWrapper as CompressionWrapper

__version__: str

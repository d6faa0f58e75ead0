"""What ScaleKit uses of other libraries that they do not promise to keep: each name is looked for in the installed version."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

# Per library: a module or a class of it, and the names that are looked for. A class may have one as a method, or set it.
USED = {
    "lightning": {
        "lightning.pytorch.Trainer": "_signal_connector _checkpoint_connector _logger_connector _data_connector",
        "lightning.pytorch.loops.training_epoch_loop._TrainingEpochLoop": "_broadcast_sigterm_tensor _should_accumulate "
        "_is_training_done _update_learning_rates _num_ready_batches_reached _batches_that_stepped _results",
        "lightning.pytorch.loops.evaluation_loop._EvaluationLoop": "_results _evaluation_step _store_dataloader_outputs "
        "_on_evaluation_epoch_end _build_kwargs _build_step_args_from_hook_kwargs _data_source",
        "lightning.pytorch.loops.prediction_loop._PredictionLoop": "run _predict_step _get_batch_indices _build_kwargs "
        "_build_step_args_from_hook_kwargs",
        "lightning.pytorch.trainer.call": "_call_strategy_hook",
        "lightning.pytorch.callbacks.ModelCheckpoint": "_train_time_interval",
        "lightning.pytorch.LightningModule": "_current_fx_name _on_before_batch_transfer _trainer",
        "lightning.pytorch.loggers.wandb.WandbLogger": "_experiment _wandb_init",
        "lightning.pytorch.strategies.ddp.DDPStrategy": "_ddp_kwargs _setup_model",
        "lightning.pytorch.loops.fit_loop._FitLoop": "_restarting epoch_loop",
        "lightning.pytorch.trainer.connectors.signal_connector._SignalConnector": "register_signal_handlers",
        "lightning.pytorch.trainer.connectors.checkpoint_connector._CheckpointConnector": "dump_checkpoint",
        "lightning.pytorch.trainer.connectors.logger_connector.logger_connector._LoggerConnector": "_callback_metrics",
        "lightning.pytorch.trainer.connectors.logger_connector.result._ResultCollection": "log _extract_batch_size",
        "lightning.pytorch.trainer.connectors.logger_connector.result._ResultMetric": "update _computed _defaults "
        "_forward_cache",
        "lightning.pytorch.trainer.connectors.logger_connector.result._Metadata": "_sync",
        "lightning.pytorch.trainer.connectors.logger_connector.result._Sync": "fn _should",
        "lightning.pytorch.core.optimizer.LightningOptimizer": "_optimizer",
        "lightning.pytorch.core.saving": "_load_state",
        "lightning.pytorch.strategies.deepspeed.DeepSpeedStrategy": "_set_node_environment_variables _process_group_backend "
        "_init_config_if_needed _init_optimizers _setup_model_and_optimizer _format_config deepspeed_engine",
        "lightning.pytorch.strategies.model_parallel.ModelParallelStrategy": "_data_parallel_size",
        "lightning.pytorch.strategies.strategy.Strategy": "_forward_redirection",
    },
    "deepspeed": {
        "deepspeed.utils.groups": "_get_zero_param_intra_parallel_group",
        "deepspeed.runtime.zero.parameter_offload.ZeROOrderedDict": "_in_forward",
        "deepspeed.runtime.zero.partition_parameters.Init": "param_swapper",
        "deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer": "bit16_groups single_partition_of_fp32_groups",
        "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3": "fp16_groups fp32_partitioned_groups_flat "
        "sub_group_to_group_id optimizer_swapper _optimizer_states_and_gradient_swap_in "
        "_optimizer_states_and_gradient_swap_out",
        "deepspeed.runtime.swap_tensor.partitioned_param_swapper": "PartitionedParamStatus",
        "deepspeed.runtime.swap_tensor.optimizer_utils.OptimizerSwapper": "swap_params_info",
        "deepspeed.runtime.zero.partition_parameters": "ds_tensor ds_numel ds_shape ds_secondary_tensor nvme_swapper",
        "deepspeed.utils.mixed_precision_linkage": "_hp_mapping",
        "deepspeed.ops.adam.cpu_adam.DeepSpeedCPUAdam": "ds_opt_adam opt_id",
    },
    "torch": {
        "torch.utils._python_dispatch": "TorchDispatchMode",
        "torch.utils._pytree": "tree_iter tree_map tree_map_only tree_flatten tree_unflatten",
        "torch._subclasses.fake_tensor": "FakeTensorMode",
        "torch.distributed._composable.checkpoint_activation": "checkpoint",
        "torch.UntypedStorage": "_cdata",
        "torch.Tensor": "_version _base",
        "torch._ops.OpOverload": "_overloadpacket _schema",
        "torch.nn.Module": "_parameters _buffers _non_persistent_buffers_set",
        "torch": "_foreach_lerp_",
        "torch.ops.aten": "_grouped_mm _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
        "_scaled_dot_product_flash_attention_for_cpu_backward",
        "torch.nn.modules.loss": "_Loss",
        "torch.utils.data.RandomSampler": "_num_samples",
        "torch.distributed.elastic.agent.server.api.SimpleElasticAgent": "_monitor_workers _start_workers _exit_barrier "
        "_remaining_restarts _worker_group _stop_workers _shutdown",
    },
    "transformers": {
        "transformers.PreTrainedModel": "_from_config _keys_to_ignore_on_save _is_stateful",
        "transformers.PretrainedConfig": "_attn_implementation",
    },
    "datasets": {
        "datasets.Dataset": "_fingerprint _format_type",
        "datasets.IterableDataset": "_distributed",
    },
}


def found(place: str) -> object:
    """A module, or something in one."""
    parts = place.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            value: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            value = getattr(value, part)
        return value
    raise ModuleNotFoundError(place)


def has(owner: object, name: str) -> bool:
    if hasattr(owner, name):
        return True
    classes = owner.__mro__ if isinstance(owner, type) else [owner]
    return any(re.search(rf"\b{name}\b", _source(each)) for each in classes)


def _source(owner: object) -> str:
    try:
        return inspect.getsource(owner)
    except (OSError, TypeError):
        return ""


@pytest.mark.parametrize(
    ("library", "place", "name"),
    [
        (library, place, name)
        for library, places in USED.items()
        for place, names in places.items()
        for name in names.split()
    ],
)
def test_it_is_there(library: str, place: str, name: str) -> None:
    try:
        owner = found(place)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{library} {version(library)} has no {place}: {error}")
    assert has(owner, name), f"{library} {version(library)}: {place} has no {name}"


def test_what_is_not_there_is_missed() -> None:
    assert not has(found("torch.Tensor"), "_no_such_name")
    assert not has(found("lightning.pytorch.Trainer"), "_no_such_name")
    with pytest.raises((ImportError, AttributeError)):
        found("torch.nn.NoSuchModule")


PACKAGE = Path(__file__).parents[1] / "scalekit"
OF_PYTHON = {"_exit", "_current_frames", "_replace", "_args_from_interpreter_flags", "_actions"}


def defined() -> Iterator[str]:
    """What the package itself calls by a private name."""
    for node in (node for file in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def used() -> Iterator[str]:
    """Private attributes that it reads of anything, and private modules and names that it imports of other libraries."""
    for node in (node for file in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("scalekit"):
            yield from (node.module or "").split(".")
            yield from (each.name for each in node.names)


def test_no_others_are_used() -> None:
    listed = {part for places in USED.values() for place in places for part in place.split(".")}
    listed |= {name for places in USED.values() for names in places.values() for name in names.split()}
    private = {name for name in used() if re.match("_[A-Za-z]", name)}
    assert private - set(defined()) - listed - OF_PYTHON == set()

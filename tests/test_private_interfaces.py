"""What ScaleKit uses of other libraries that they do not promise to keep: each name is looked for in the installed version."""

import importlib
import inspect
import re
from importlib.metadata import version

import pytest

# Per library: a module or a class of it, and the names that are looked for. A class may have one as a method, or set it.
USED = {
    "lightning": {
        "lightning.pytorch.Trainer": "_signal_connector _checkpoint_connector _logger_connector _data_connector",
        "lightning.pytorch.loops.training_epoch_loop._TrainingEpochLoop": "_broadcast_sigterm_tensor _should_accumulate "
        "_update_learning_rates _num_ready_batches_reached _batches_that_stepped _results",
        "lightning.pytorch.loops.evaluation_loop._EvaluationLoop": "_results",
        "lightning.pytorch.loops.prediction_loop._PredictionLoop": "run",
        "lightning.pytorch.loops.fit_loop._FitLoop": "_restarting epoch_loop",
        "lightning.pytorch.trainer.connectors.signal_connector._SignalConnector": "register_signal_handlers",
        "lightning.pytorch.trainer.connectors.checkpoint_connector._CheckpointConnector": "dump_checkpoint",
        "lightning.pytorch.trainer.connectors.logger_connector.logger_connector._LoggerConnector": "_callback_metrics",
        "lightning.pytorch.trainer.connectors.logger_connector.result._ResultCollection": "log",
        "lightning.pytorch.trainer.connectors.logger_connector.result._ResultMetric": "update",
        "lightning.pytorch.core.optimizer.LightningOptimizer": "_optimizer",
        "lightning.pytorch.core.saving": "_load_state",
        "lightning.pytorch.strategies.deepspeed.DeepSpeedStrategy": "_set_node_environment_variables _process_group_backend "
        "_init_config_if_needed _init_optimizers _setup_model_and_optimizer _format_config deepspeed_engine",
        "lightning.pytorch.strategies.model_parallel.ModelParallelStrategy": "_data_parallel_size",
        "lightning.pytorch.strategies.strategy.Strategy": "_forward_redirection",
    },
    "deepspeed": {
        "deepspeed.utils.groups": "_get_zero_param_intra_parallel_group",
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
        "torch.utils.data.RandomSampler": "_num_samples",
        "torch.distributed.elastic.agent.server.api.SimpleElasticAgent": "_monitor_workers _start_workers _exit_barrier "
        "_remaining_restarts _worker_group",
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

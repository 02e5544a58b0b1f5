from pipeline.report.details import details


def test_details_become_texts_and_tables_when_they_have_those_shapes() -> None:
    scalar, short, table, mapping, nested, nothing, none, few, rounds = details(
        {
            "chosen": "mse",
            "observers": ["minmax", "mse"],
            "trials": [{"name": "a", "top1": 0.5}, {"name": "b", "duration_s": 2.0}],
            "channels": {"conv1": [16, 8], "conv2": [32, 24]},
            "by_layer": {"conv1": {"sqnr_db": 20.0}},
            "float_kernels": {},
            "heads": [],
            "held_out": {"samples": 20, "metric": "top1"},
            "rounds": [{"budgets": {"macs": 0.5, "parameters": 0.25}, "recovery": []}],
        }
    )
    assert (scalar.text, short.text) == ("mse", "minmax, mse")
    assert table.columns == ("name", "top1", "duration")
    assert table.rows == (("a", "50.00\N{NO-BREAK SPACE}%", "–"), ("b", "–", "2.00\N{NO-BREAK SPACE}s"))
    assert mapping.rows == (("conv1", "16, 8"), ("conv2", "32, 24"))
    assert nested.rows == (("conv1", "20.0\N{NO-BREAK SPACE}dB"),)
    assert (nothing.text, none.text, few.text) == ("–", "–", "samples: 20; metric: top1")
    assert rounds.rows == (("macs: 0.5; parameters: 0.25", "–"),)

use super::*;

fn plan(json: &str) -> Result<ResourcePlan> {
    ResourcePlan::from_spec(&serde_json::from_str(json).expect("the test's JSON is valid"))
}

fn writes(json: &str) -> Vec<(String, String)> {
    let plan = plan(json).expect(json);
    plan.entries()
        .iter()
        .map(|e| (e.file.to_string(), e.value.clone()))
        .collect()
}

#[test]
fn each_field_becomes_its_writes() {
    let table: &[(&str, &[(&str, &str)])] = &[
        ("{}", &[]),
        (r#"{"pids":{"limit":0}}"#, &[]),
        (r#"{"pids":{"limit":7}}"#, &[("pids.max", "7")]),
        (r#"{"pids":{"limit":-1}}"#, &[("pids.max", "max")]),
        (
            r#"{"memory":{"limit":1048576}}"#,
            &[("memory.max", "1048576")],
        ),
        (
            r#"{"memory":{"limit":100,"swap":300,"reservation":50}}"#,
            &[
                ("memory.swap.max", "200"),
                ("memory.max", "100"),
                ("memory.low", "50"),
            ],
        ),
        (
            r#"{"memory":{"limit":100,"swap":100}}"#,
            &[("memory.swap.max", "0"), ("memory.max", "100")],
        ),
        (
            r#"{"memory":{"limit":-1}}"#,
            &[("memory.swap.max", "max"), ("memory.max", "max")],
        ),
        (r#"{"cpu":{"shares":1024}}"#, &[("cpu.weight", "100")]),
        (r#"{"cpu":{"shares":0,"quota":0,"period":0}}"#, &[]),
        (r#"{"cpu":{"quota":50000}}"#, &[("cpu.max", "50000 100000")]),
        (
            r#"{"cpu":{"quota":-1,"period":50000}}"#,
            &[("cpu.max", "max 50000")],
        ),
        (r#"{"cpu":{"period":50000}}"#, &[("cpu.max", "max 50000")]),
        (
            r#"{"cpu":{"idle":1,"burst":10,"quota":20,"cpus":"0-1","mems":"0"}}"#,
            &[
                ("cpu.idle", "1"),
                ("cpu.max.burst", "10"),
                ("cpu.max", "20 100000"),
                ("cpuset.cpus", "0-1"),
                ("cpuset.mems", "0"),
            ],
        ),
        (r#"{"blockIO":{"weight":500}}"#, &[("io.bfq.weight", "500")]),
        (
            r#"{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":10}],
                "throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":0}]}}"#,
            &[("io.max", "8:0 rbps=10"), ("io.max", "8:16 wiops=max")],
        ),
        (
            r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#,
            &[
                ("hugetlb.2MB.max", "4194304"),
                ("hugetlb.2MB.rsvd.max", "4194304"),
            ],
        ),
        (
            r#"{"rdma":{"mlx5_1":{"hcaHandles":3,"hcaObjects":10000},"mlx4_0":{"hcaObjects":9}}}"#,
            &[
                ("rdma.max", "mlx4_0 hca_object=9"),
                ("rdma.max", "mlx5_1 hca_handle=3 hca_object=10000"),
            ],
        ),
        (
            r#"{"pids":{"limit":5},"unified":{"pids.max":"9","io.max":"8:0 rbps=1\n8:16 wbps=2\n","memory.oom.group":"1"}}"#,
            &[
                ("pids.max", "5"),
                ("io.max", "8:0 rbps=1"),
                ("io.max", "8:16 wbps=2"),
                ("memory.oom.group", "1"),
                ("pids.max", "9"),
            ],
        ),
    ];
    for (json, expected) in table {
        let got = writes(json);
        let got: Vec<_> = got.iter().map(|(f, v)| (f.as_str(), v.as_str())).collect();
        assert_eq!(&got, expected, "{json}");
    }
}

#[test]
fn a_bad_value_is_refused_with_its_field() {
    let table = [
        (
            r#"{"memory":{"swap":300}}"#,
            "linux.resources.memory.swap: unable to set swap limit without memory limit",
        ),
        (
            r#"{"memory":{"limit":300,"swap":100}}"#,
            "memory+swap limit should be >= memory limit",
        ),
        (
            r#"{"memory":{"limit":-5}}"#,
            "linux.resources.memory.limit: -5",
        ),
        (
            r#"{"unified":{"../x":"1"}}"#,
            "must be a file name (no slashes)",
        ),
        (
            r#"{"unified":{"nodot":"1"}}"#,
            "must be in the form CONTROLLER.PARAMETER",
        ),
        (
            r#"{"hugepageLimits":[{"pageSize":"../1","limit":1}]}"#,
            "not a page size",
        ),
        (r#"{"cpu":{"cpus":"0\n1"}}"#, "linux.resources.cpu.cpus"),
    ];
    for (json, part) in table {
        let error = plan(json).expect_err(json).to_string();
        assert!(error.contains(part), "{json}: {error}");
    }
}

#[test]
fn the_needed_controllers_are_those_of_the_binding_entries() {
    let json = r#"{"memory":{"limit":-1},"cpu":{"cpus":"0","shares":1024},"unified":{"cgroup.max.depth":"3"}}"#;
    let needed = Controllers::MEMORY.union(Controllers::CPUSET);
    assert_eq!(plan(json).unwrap().controllers(), needed);
    let lighter = plan(r#"{"cpu":{"shares":512}}"#).unwrap();
    assert_eq!(lighter.controllers(), Controllers::CPU);
}

#[test]
fn a_weight_falls_back_where_bfq_is_absent() {
    let plan =
        plan(r#"{"blockIO":{"weightDevice":[{"major":8,"minor":0,"weight":1000}]}}"#).unwrap();
    let value = "8:0 10000".to_owned();
    assert_eq!(
        plan.entries()[0].on_refusal,
        OnRefusal::Instead {
            file: "io.weight",
            value
        }
    );
}

#[test]
fn limits_are_compared_with_the_use_only_on_demand() {
    let checked = plan(r#"{"memory":{"limit":100,"swap":-1,"checkBeforeUpdate":true}}"#).unwrap();
    assert_eq!(
        checked.usage_checks(),
        [UsageCheck {
            field: "limit",
            limit: 100
        }]
    );
    assert!(
        plan(r#"{"memory":{"limit":100}}"#)
            .unwrap()
            .usage_checks()
            .is_empty()
    );
}

#[test]
fn an_idle_cgroup_gets_no_weight() {
    for json in [
        r#"{"cpu":{"idle":1,"shares":200}}"#,
        r#"{"unified":{"cpu.idle":"1","cpu.weight":"8"}}"#,
    ] {
        assert_eq!(
            writes(json),
            [("cpu.idle".to_owned(), "1".to_owned())],
            "{json}"
        );
        assert_eq!(plan(json).unwrap().warnings().len(), 1, "{json}");
    }
    let awake = plan(r#"{"cpu":{"idle":0,"shares":200}}"#).unwrap();
    assert!(awake.warnings().is_empty() && awake.entries().len() == 2);
}

#[test]
fn fields_without_a_v2_equivalent_are_named() {
    let plan = plan(r#"{"memory":{"swappiness":3},"cpu":{"realtimePeriod":9}}"#).unwrap();
    assert!(plan.is_empty());
    let fields = [
        "linux.resources.memory.swappiness",
        "linux.resources.cpu.realtimePeriod",
    ];
    assert_eq!(plan.ignored(), fields);
}

"""NC1 to NC4: zero on the ideal geometry, blind to rotation and scale, and against scikit-learn's scatter matrices."""

import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import NearestCentroid

from lossbook.metrics import nc1, nc2, nc3, nc4

K, D = 4, 6


def randn(generator, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def rotation(generator, size=D):
    return torch.linalg.qr(randn(generator, size, size)).Q


@pytest.fixture
def labels():
    return torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 0])


@pytest.fixture
def features(generator, labels):
    return randn(generator, len(labels), D) + 3 * torch.eye(K, D, dtype=torch.float64)[labels]


def simplex(generator):
    """Vertices of a rotated simplex ETF in D dimensions."""
    centered = torch.eye(K, dtype=torch.float64) - 1 / K
    return 3 * torch.cat([centered, torch.zeros(K, D - K, dtype=torch.float64)], 1) @ rotation(generator)


def frame(generator, lengths):
    return torch.diag(torch.tensor(lengths, dtype=torch.float64).sqrt()) @ rotation(generator)[:K]


def test_all_vanish_on_collapsed_features(generator, labels):
    means = simplex(generator)
    features = means[labels]
    assert nc1(features, labels) == pytest.approx(0, abs=1e-25)
    assert nc2(means) == pytest.approx(0, abs=1e-14)
    assert nc3(5 * means, means) == pytest.approx(0, abs=1e-14)
    assert nc4(features, labels, means) == 0.0


def test_frames_are_told_apart(generator):
    etf, orthogonal = simplex(generator), frame(generator, [2.0] * K)
    lengths = [9.0, 4.0, 1.0, 0.0]
    general = frame(generator, lengths)
    assert nc2(orthogonal, "of") == pytest.approx(0, abs=1e-14)
    assert nc2(general, "gof", lengths) == pytest.approx(0, abs=1e-14)
    assert nc2(general, "gof", torch.tensor(lengths)) == pytest.approx(0, abs=1e-14)
    # Unit Gram matrices I / sqrt(K) and (I - 11'/K) / sqrt(K - 1) have the inner product sqrt((K - 1) / K).
    apart = (2 - 2 * ((K - 1) / K) ** 0.5) ** 0.5
    assert nc2(orthogonal, "etf") == pytest.approx(apart)
    assert nc2(etf, "of") == pytest.approx(apart)
    assert nc2(general, "of") > 0.5


def test_self_duality_of_a_general_frame(generator):
    """W A' is diag(|w||h|) when rows and means have the same directions but lengths of their own."""
    basis = rotation(generator)[:K]
    w, h = torch.tensor([3.0, 2.0, 1.0, 0.5]).double(), torch.tensor([0.2, 0.4, 0.3, 0.1]).double()
    weights, means = w[:, None] * basis, h[:, None] * basis
    assert nc3(weights, means, "gof", w * h) == pytest.approx(0, abs=1e-14)
    assert nc3(weights, means[[1, 0, 2, 3]], "gof", w * h) > 1


def test_rotation_and_scale_change_nothing(generator, features, labels):
    turn, means, weights = rotation(generator), features[:K], randn(generator, K, D)
    assert nc1(7 * features @ turn, labels) == pytest.approx(nc1(features, labels), rel=1e-10)
    assert nc2(7 * means @ turn, "of") == pytest.approx(nc2(means, "of"), rel=1e-10)
    assert nc3(7 * weights @ turn, 3 * means @ turn) == pytest.approx(nc3(weights, means), rel=1e-10)
    assert nc4(7 * features @ turn, labels, 3 * weights @ turn) == nc4(features, labels, weights)


def test_shift_changes_neither_nc1_nor_nc4(features, labels, generator):
    shift, weights, bias = randn(generator, D), randn(generator, K, D), randn(generator, K)
    assert nc1(features + shift, labels) == pytest.approx(nc1(features, labels), rel=1e-10)
    moved = nc4(features + shift, labels, weights, bias - weights @ shift)
    assert moved == nc4(features, labels, weights, bias)


def test_nc1_is_the_scatter_of_discriminant_analysis(generator):
    """With equal counts S_W is scikit-learn's within-class covariance."""
    labels = torch.arange(K).repeat(8)
    features = randn(generator, len(labels), D) + 2 * randn(generator, K, D)[labels]
    fitted = LinearDiscriminantAnalysis(solver="eigen").fit(features.numpy(), labels.numpy())
    means = torch.from_numpy(fitted.means_)
    between = (means - means.mean(0)).T @ (means - means.mean(0)) / K
    expected = torch.trace(torch.from_numpy(fitted.covariance_) @ torch.linalg.pinv(between, rtol=1e-9)) / K
    assert nc1(features, labels) == pytest.approx(expected.item(), rel=1e-8)


def test_nc4_counts_disagreement_with_the_nearest_centroid(features, labels, generator):
    weights, bias = randn(generator, K, D), randn(generator, K)
    nearest = NearestCentroid().fit(features.numpy(), labels.numpy()).predict(features.numpy())
    by_classifier = (features @ weights.T + bias).argmax(1).numpy()
    assert nc4(features, labels, weights, bias) == pytest.approx((nearest != by_classifier).mean())
    assert nc4(features, labels, weights) != nc4(features, labels, weights, 100 * bias)


def test_erased_classes_do_not_blow_up(labels):
    """Two classes at the origin: the between-class scatter loses a rank, which the pseudoinverse leaves out."""
    means = torch.diag(torch.tensor([2.0, 1.0, 0.0, 0.0]))
    assert nc1(means[labels], labels) == pytest.approx(0, abs=1e-12)
    assert nc2(means, "gof", [4.0, 1.0, 0.0, 0.0]) == pytest.approx(0, abs=1e-14)


def test_nothing_left_is_nan():
    nothing = torch.zeros(3, 3)
    assert all(map(torch.isnan, map(torch.tensor, (nc2(nothing), nc3(nothing, nothing), nc2(nothing, "of")))))


def test_one_sample_of_each_class_has_no_spread(generator):
    assert nc1(randn(generator, K, D), torch.arange(K)) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_are_taken_to_float64(features, labels, dtype, generator):
    """A dtype rounds the input; nothing else is lost, however large the features."""
    low, weights = (1e3 * features).to(dtype), randn(generator, K, D, dtype=dtype)
    assert nc1(low, labels) == nc1(low.double(), labels)
    assert nc2(low[:K]) == nc2(low[:K].double())
    assert nc3(weights, low[:K]) == nc3(weights.double(), low[:K].double())
    assert nc4(low, labels, weights) == nc4(low.double(), labels, weights.double())


def test_plain_floats_without_a_graph(features, labels):
    features.requires_grad_()
    results = nc1(features, labels), nc2(features[:K]), nc3(features[:K], features[:K])
    assert all(type(result) is float for result in (*results, nc4(features, labels, features[:K])))


X, Y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nc1([[1.0]], Y), TypeError, "features must be a torch.Tensor, got list"),
        (lambda: nc1(X.long(), Y), TypeError, "features must have a floating-point dtype, got torch.int64"),
        (lambda: nc1(X[0], Y), ValueError, r"features must have shape \(N, d\) = \(\*, \*\), got \(3,\)"),
        (lambda: nc1(X, Y[:3]), ValueError, r"labels must have shape \(N,\) = \(4,\), got \(3,\)"),
        (lambda: nc1(X, Y.float()), TypeError, "labels must have dtype torch.int64, got torch.float32"),
        (lambda: nc1(X, 0 * Y), ValueError, r"labels must hold every class .* K >= 2, got classes \[0\]"),
        (lambda: nc1(X, 2 * Y), ValueError, r"labels must hold every class .*, got classes \[0, 2\]"),
        (lambda: nc1(X, Y - 1), ValueError, r"labels must hold every class .*, got classes \[-1, 0\]"),
        (lambda: nc1(X[:0], Y[:0]), ValueError, r"labels must hold every class .*, got classes \[\]"),
        (lambda: nc2(X, "frame"), ValueError, "target must be one of 'etf', 'of', 'gof', got 'frame'"),
        (lambda: nc2(X, "gof"), ValueError, "lengths_sq must be given for target='gof', got None"),
        (lambda: nc2(X, "of", [1.0] * 4), ValueError, r"lengths_sq must be None for target='of', got \[1.0"),
        (lambda: nc2(X, "gof", [1.0]), ValueError, r"lengths_sq must have shape \(K,\) = \(4,\), got \(1,\)"),
        (lambda: nc2(X[:1]), ValueError, "vectors must hold at least 2 classes, got 1"),
        (lambda: nc2(X[0]), ValueError, r"vectors must have shape \(K, d\) = .*, got \(3,\)"),
        (lambda: nc3(X, X[:2]), ValueError, r"means must have shape \(K, d\) = \(4, 3\), got \(2, 3\)"),
        (lambda: nc3(X, X, "gof"), ValueError, "lengths_sq must be given for target='gof', got None"),
        (lambda: nc3(X, X.to("meta")), ValueError, "means must be on the device of weights, cpu, got meta"),
        (lambda: nc4(X, Y, X), ValueError, r"weights must have shape \(K, d\) = \(2, 3\), got \(4, 3\)"),
        (lambda: nc4(X, Y, X[:2], X[0]), ValueError, r"bias must have shape \(K,\) = \(2,\), got \(3,\)"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()

// Not compiled here: no Xcode on the build machine. Calls follow ExecuTorch's iOS guide,
// https://docs.pytorch.org/executorch/stable/using-executorch-ios.html
// (products executorch, backend_xnnpack and kernels_optimized, linked with -all_load).
//
// manifest.json of the run says: photo float32 [1, 3, 320, 448] in [-1, 1],
// position float32 [1, 9] in [0, 1] (one-hot, or zeros where it is unknown); outputs, in order:
// stack float32 [9, 3, 320, 448] in [-1, 1], sharp float32 [1, 3, 320, 448] in [-1, 1],
// detail float32 [1, 10, 320, 448] in [-1, 1], dioptres float32 [1, 1, 80, 112] in [0, 1],
// positions float32 [1, 9] in [0, 1]. `functions` of the artifact lists what to call for photos of
// other sizes: module.execute(name, inputs) in place of forward.

import ExecuTorch
import Foundation

final class Refocus {
  private let module: Module

  /// Of a golden bundle, the first .pte that is right on this phone (Canary.swift).
  static func open(bundle: URL) throws -> Refocus? {
    try Canary.read(bundle: bundle).firstThatWorks(
      in: bundle, target: "executorch", open: { file, _ in try Refocus(ptePath: file.path) },
      stackOf: { model, photo, position in try model.analyse(photo: photo, position: position)[0] })
  }

  init(ptePath: String) throws {
    module = Module(filePath: ptePath)  // executorch/student-int8.pte
    try module.load("forward")
  }

  /// photo: 3 * 320 * 448 values, channels first, (pixel / 127.5 - 1); position: 0 near to 8 far,
  /// nil where it is unknown. Returns all outputs: nine such pictures first.
  func analyse(photo: [Float], position: Int?) throws -> [[Float]] {
    var oneHot = [Float](repeating: 0, count: 9)
    if let position { oneHot[position] = 1 }
    let inputs = [
      Tensor<Float>(photo, shape: [1, 3, 320, 448]),
      Tensor<Float>(oneHot, shape: [1, 9]),
    ]
    let outputs = try module.forward(inputs)  // stack, sharp, detail, dioptres, positions
    return outputs.compactMap { $0.tensor() as Tensor<Float>? }.map { $0.scalars() }
  }
}

// Not compiled here: no Xcode on the build machine. Calls follow ExecuTorch's iOS guide,
// https://docs.pytorch.org/executorch/stable/using-executorch-ios.html
// (products executorch, backend_xnnpack and kernels_optimized, linked with -all_load).
//
// manifest.json of the run says: photo float32 [1, 3, 256, 256] in [-1, 1],
// position float32 [1, 9] in [0, 1] (one-hot), stack float32 [9, 3, 256, 256] in [-1, 1].

import ExecuTorch

final class Refocus {
  private let module: Module

  init(ptePath: String) throws {
    module = Module(filePath: ptePath)  // executorch/student-int8.pte
    try module.load("forward")
  }

  /// photo: 3 * 256 * 256 values, channels first, (pixel / 127.5 - 1). Returns nine such pictures.
  func stack(photo: [Float], position: Int) throws -> [Float] {
    var oneHot = [Float](repeating: 0, count: 9)
    oneHot[position] = 1
    let inputs = [
      Tensor<Float>(photo, shape: [1, 3, 256, 256]),
      Tensor<Float>(oneHot, shape: [1, 9]),
    ]
    return try Tensor<Float>(module.forward(inputs)).scalars()  // [9, 3, 256, 256]
  }
}

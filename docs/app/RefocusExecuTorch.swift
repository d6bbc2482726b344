// Not compiled here: no Xcode on the build machine. Calls follow ExecuTorch's iOS guide,
// https://docs.pytorch.org/executorch/stable/using-executorch-ios.html
// (products executorch, backend_xnnpack and kernels_optimized, linked with -all_load).
//
// manifest.json of the run says: photo float32 [1, 3, 320, 448] in [-1, 1],
// position float32 [1, 9] in [0, 1] (one-hot, or zeros where it is unknown); outputs, in order:
// stack float32 [9, 3, 320, 448] in [-1, 1], sharp float32 [1, 3, 320, 448] in [-1, 1],
// detail float32 [1, 10, 320, 448] in [-1, 1], dioptres float32 [1, 1, 80, 112] in [0, 1],
// positions float32 [1, 9] in [0, 1]. `functions` of the artifact lists a method for every size.

import ExecuTorch
import Foundation

final class Refocus {
  static let usual = Canary.Method(name: "forward", size: [320, 448])
  private let module: Module

  /// Of a golden bundle, the first .pte that is right on this phone (Canary.swift).
  static func open(bundle: URL) throws -> Refocus? {
    try Canary.read(bundle: bundle).firstThatWorks(
      in: bundle, target: "executorch", open: { file, _ in try Refocus(ptePath: file.path) },
      stackOf: { model, photo, position, method in
        try model.analyse(photo: photo, position: position, method: method ?? usual)[0]
      })
  }

  init(ptePath: String) throws {
    module = Module(filePath: ptePath)  // executorch/student-int8.pte
    try module.load(Refocus.usual.name)  // other methods load when they are first called
  }

  /// The method whose photos are most like one of this size in shape: nothing is squashed or cut.
  static func methodFor(height: Int, width: Int, of methods: [Canary.Method]) -> Canary.Method? {
    func off(_ size: [Int]) -> Double {
      abs(log(Double(size[1] * height) / Double(size[0] * width)))
    }
    return methods.min { off($0.size) < off($1.size) }
  }

  /// photo: 3 * height * width values of the method's size, channels first, (pixel / 127.5 - 1);
  /// position: 0 near to 8 far, nil where it is unknown. Returns all outputs: nine such pictures first.
  func analyse(
    photo: [Float], position: Int?, method: Canary.Method = Refocus.usual
  ) throws -> [[Float]] {
    var oneHot = [Float](repeating: 0, count: 9)
    if let position { oneHot[position] = 1 }
    let inputs = [
      Tensor<Float>(photo, shape: [1, 3] + method.size),
      Tensor<Float>(oneHot, shape: [1, 9]),
    ]
    let outputs = try module.execute(method.name, inputs)  // stack, sharp, detail, dioptres, positions
    return outputs.compactMap { $0.tensor() as Tensor<Float>? }.map { $0.scalars() }
  }
}

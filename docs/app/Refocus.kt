// Not compiled here: no Android SDK on the build machine. Calls follow ExecuTorch's Android guide,
// https://docs.pytorch.org/executorch/stable/using-executorch-android.html (AAR executorch-android).
//
// manifest.json of the run says: photo float32 [1, 3, 256, 256] in [-1, 1],
// position float32 [1, 9] in [0, 1] (one-hot), stack float32 [9, 3, 256, 256] in [-1, 1].

import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

class Refocus(ptePath: String) {
    private val module = Module.load(ptePath) // executorch/student-int8.pte, copied out of the assets

    /** photo: 3 * 256 * 256 values, channels first, (pixel / 127.5 - 1). Returns nine such pictures. */
    fun stack(photo: FloatArray, position: Int): FloatArray {
        val oneHot = FloatArray(9).also { it[position] = 1f }
        val outputs = module.forward(
            EValue.from(Tensor.fromBlob(photo, longArrayOf(1, 3, 256, 256))),
            EValue.from(Tensor.fromBlob(oneHot, longArrayOf(1, 9))),
        )
        return outputs[0].toTensor().dataAsFloatArray // [9, 3, 256, 256]
    }
}
